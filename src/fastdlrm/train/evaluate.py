"""A model's metrics on a split."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdlrm.data.loader import SequentialLoader
from fastdlrm.data.rows import Rows
from fastdlrm.metrics.evaluation import Evaluation, MetricValues
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.predictor import Predictor
from fastdlrm.parallel.world import ALONE, World


def evaluate(
    model: DLRM,
    rows: Rows,
    batch_size: int,
    device: torch.device,
    world: World = ALONE,
) -> MetricValues:
    """Metrics over all rows of a split; the last, smaller batch counts like any other.

    Args:
        model: On `device`; left in the mode it came in.
        rows: Labelled.
        batch_size: Rows a forward pass, over all ranks; does not change the result beyond rounding.
        device: Where to compute.
        world: The ranks that share the rows; all get the metrics of all rows.
    """
    state = Evaluation()
    for logits, labels in scores(model, rows, batch_size, device, world):
        state.update(logits, labels)
    collected = world.collect(state.arrays() if world.size > 1 else {})

    def merge() -> MetricValues:
        for arrays in collected[1:]:
            state.add_arrays(arrays)
        return state.compute()

    return world.on_first(merge)


def scores(
    model: DLRM,
    rows: Rows,
    batch_size: int,
    device: torch.device,
    world: World = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, shape (B,) each, on the CPU, batch by batch in the split's order.

    With several ranks each gives those of its own samples of each batch.
    """
    predictor = Predictor(model)
    loader = SequentialLoader(
        rows, batch_size, rank=world.rank, world_size=world.size, pin=device.type == "cuda"
    )
    for batch in loader:
        moved = batch.to(device, non_blocking=True)
        yield predictor(moved.dense, moved.sparse).cpu(), batch.labels
