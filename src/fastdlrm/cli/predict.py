"""`fastdlrm predict`: run or exported model + raw files -> scores."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastdlrm.cli.options import CheckpointName, Inputs, Json, emit
from fastdlrm.errors import ConfigError


def predict(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder made by `fastdlrm train`.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder made by `fastdlrm export`, in place of a run.")
    ] = None,
    checkpoint: CheckpointName = "best",
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="The files lack the label column.")
    ] = False,
    deltas: Annotated[
        bool, typer.Option(help="Apply the deltas in the model's folder, as a server does.")
    ] = True,
    json: Json = False,
) -> None:
    """Score raw files of the format the model was trained from, in input order.

    The Parquet file has the columns `file` (its path as given), `row` (from 0 in its file) and
    `score`, the probability of a positive label.

        fastdlrm predict --run RUN --input 'LOG/*.gz' --out SCORES.parquet
        fastdlrm predict --model MODEL --input 'LOG/*.gz' --out SCORES.parquet
    """
    from fastdlrm.data.source import expand_inputs
    from fastdlrm.export.model import ExportedModel
    from fastdlrm.train.device import scoring_device
    from fastdlrm.train.predict import ModelScorer, RunScorer
    from fastdlrm.train.predict import predict as score
    from fastdlrm.train.run import Run

    if (run is None) == (model is None):
        raise ConfigError("predict: give --run or --model, one of the two")
    scorer: RunScorer | ModelScorer
    result: dict[str, Any] = {}
    if run is not None:
        opened = Run.open(run)
        device = scoring_device(opened.recipe.train.device)
        scorer = RunScorer(opened, checkpoint, device)
    else:
        assert model is not None
        exported = ExportedModel.load(model)
        result = {"deltas": exported.apply_deltas() if deltas else 0}
        scorer = ModelScorer(exported)
    num_rows = score(scorer, expand_inputs(inputs), out, labelled=not unlabelled)
    emit(
        {"num_rows": num_rows, "out": str(out), **result},
        json,
        lambda: {"rows": num_rows, "file": str(out), **result},
    )
