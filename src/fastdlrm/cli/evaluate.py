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
    from fastdlrm.metrics.eval_result import check_output, write_eval_result
    from fastdlrm.metrics.values import SCALARS
    from fastdlrm.train.evaluate import evaluate_run

    if out is not None:
        check_output(out)
    result = evaluate_run(run, data, split, checkpoint)
    if out is not None:
        write_eval_result(out, result)
    shown = (*SCALARS, "num_samples", "num_positives")
    emit(result.values, json, lambda: {name: getattr(result.values, name) for name in shown})
