"""`fastdlrm eval`: run + dataset -> metrics."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import CheckpointName, Json, RunFolder, emit


def evaluate(
    run: RunFolder,
    data: Annotated[Path, typer.Option(help="Dataset folder the run was trained on.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    checkpoint: CheckpointName = "best",
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write, for `fastdlrm report`.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure a run's model on a split: AUC, log loss, normalised entropy, calibration.

    fastdlrm eval --run RUN --data DATA --split test --json
    """
    from datetime import UTC, datetime

    from fastdlrm import __version__
    from fastdlrm.contracts.manifest import CheckpointManifest, read_manifest, source_commit
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.metrics.eval_result import EvalResult, check_output, write_eval_result
    from fastdlrm.metrics.values import SCALARS
    from fastdlrm.train.device import device_name, scoring_device
    from fastdlrm.train.evaluate import evaluate as measure
    from fastdlrm.train.matmul import use
    from fastdlrm.train.run import Run

    if out is not None:
        check_output(out)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    opened = Run.open(run)
    dataset = Dataset.open(data)
    opened.require_same_encoding(dataset)
    config = opened.recipe.train
    device = scoring_device(config.device)
    use(run, device)
    model = opened.load_model(checkpoint).to(device)
    values = measure(model, dataset.split(split), config.eval_batch_size, device)
    if out is not None:
        result = EvalResult(
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
        write_eval_result(out, result)
    shown = (*SCALARS, "num_samples", "num_positives")
    emit(values, json, lambda: {name: getattr(values, name) for name in shown})
