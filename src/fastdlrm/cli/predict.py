"""`fastdlrm predict`: run + raw files -> scores."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import CheckpointName, Inputs, Json, RunFolder, emit


def predict(
    run: RunFolder,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    checkpoint: CheckpointName = "best",
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="The files lack the label column.")
    ] = False,
    json: Json = False,
) -> None:
    """Score raw files of the format the model was trained from, in input order.

    The Parquet file has the columns `file` (its path as given), `row` (from 0 in its file) and
    `score`, the probability of a positive label.

        fastdlrm predict --run RUN --input 'LOG/*.gz' --out SCORES.parquet
    """
    from fastdlrm.data.source import expand_inputs
    from fastdlrm.train.device import scoring_device
    from fastdlrm.train.predict import predict as score
    from fastdlrm.train.run import Run

    opened = Run.open(run)
    num_rows = score(
        opened,
        expand_inputs(inputs),
        out,
        checkpoint=checkpoint,
        device=scoring_device(opened.recipe.train.device),
        labelled=not unlabelled,
    )
    emit(
        {"num_rows": num_rows, "out": str(out)}, json, lambda: {"rows": num_rows, "file": str(out)}
    )
