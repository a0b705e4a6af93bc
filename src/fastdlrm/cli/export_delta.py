"""`fastdlrm export-delta`: rows that training has changed -> deltas of an exported model."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import CheckpointName, Json, RunFolder, emit


def export_delta(
    run: RunFolder,
    model: Annotated[Path, typer.Option(help="Folder made by `fastdlrm export` of this run.")],
    checkpoint: CheckpointName = "last",
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Leave MLPs that differ as they are served.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the rows of tables that differ from what an exported model serves.

    They go into MODEL/deltas, where a server of the model finds and applies them while it serves.

        fastdlrm export-delta --run RUN --model MODELS/ctr/1 --tables-only
    """
    from fastdlrm.contracts.delta import read_delta
    from fastdlrm.export.fresh_rows import write_fresh_rows
    from fastdlrm.train.run import Run

    opened = Run.open(run)
    trained = opened.load_model(checkpoint)
    paths = write_fresh_rows(model, opened.manifest, trained, tables_only=tables_only)
    rows = {path.name: len(read_delta(path).ids) for path in paths}
    result = {"deltas": [str(path) for path in paths], "num_rows": sum(rows.values())}
    emit(
        result,
        json,
        lambda: {"deltas": len(paths), "rows": sum(rows.values()), "folder": str(model)},
    )
