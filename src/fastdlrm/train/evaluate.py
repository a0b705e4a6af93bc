"""A model's metrics on a split."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from fastdlrm import __version__
from fastdlrm.contracts.manifest import CheckpointManifest, read_manifest, source_commit
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.loader import SequentialLoader
from fastdlrm.data.rows import Rows
from fastdlrm.metrics.eval_result import EvalResult
from fastdlrm.metrics.evaluation import Evaluation, MetricValues
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.predictor import Predictor
from fastdlrm.parallel.world import ALONE, World
from fastdlrm.train.device import device_name, scoring_device
from fastdlrm.train.matmul import use
from fastdlrm.train.run import Run


def evaluate_run(run: Path, data: Path, split: str, checkpoint: str = "best") -> EvalResult:
    """Metrics of a run's model on a split, and what they are of.

    Args:
        run: Its folder.
        data: Dataset folder that the run was trained on.
        split: train, validation or test.
        checkpoint: best, last, or a step's number.

    Raises:
        CheckpointError: No run there, or no such checkpoint.
        DataError: No dataset there, no such split, or it is encoded differently.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    opened = Run.open(run)
    dataset = Dataset.open(data)
    opened.require_same_encoding(dataset)
    config = opened.recipe.train
    device = scoring_device(config.device)
    use(run, device)
    model = opened.load_model(checkpoint).to(device)
    values = evaluate(model, dataset.split(split), config.eval_batch_size, device)
    return EvalResult(
        created_by=__version__,
        commit=source_commit(),
        started=started,
        run=str(run),
        step=read_manifest(opened.checkpoint_folder(checkpoint), CheckpointManifest).step,
        data=str(data),
        split=split,
        config=opened.manifest.config,
        machine=device_name(device),
        values=values,
    )


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
