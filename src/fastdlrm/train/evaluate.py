"""A model's metrics on a split."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastdlrm.data.loader import SequentialLoader
from fastdlrm.data.rows import Rows
from fastdlrm.metrics.evaluation import Evaluation, MetricValues
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.predictor import Predictor


def evaluate(model: DLRM, rows: Rows, batch_size: int, device: torch.device) -> MetricValues:
    """Metrics over all rows of a split; the last, smaller batch counts like any other.

    Args:
        model: On `device`; left in the mode it came in.
        rows: Labelled.
        batch_size: Rows a forward pass; does not change the result beyond rounding.
        device: Where to compute.
    """
    state = Evaluation()
    for logits, labels in scores(model, rows, batch_size, device):
        state.update(logits, labels)
    return state.compute()


def scores(
    model: DLRM, rows: Rows, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, shape (B,) each, on the CPU, batch by batch in the split's order."""
    predictor = Predictor(model)
    for batch in SequentialLoader(rows, batch_size, pin=device.type == "cuda"):
        moved = batch.to(device, non_blocking=True)
        yield predictor(moved.dense, moved.sparse).cpu(), batch.labels
