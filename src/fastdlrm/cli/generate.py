"""`fastdlrm generate`: a click log whose best AUC is known."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import Json, emit
from fastdlrm.cli.progress import bar


def generate(
    rows: Annotated[int, typer.Option(help="Rows in all files together.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist or be empty.")],
    files: Annotated[int, typer.Option(help="Files to spread the rows over.")] = 1,
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress the files.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 1,
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="Labels without any signal: best AUC 0.5.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a Criteo-shaped click log drawn from a planted teacher.

    40 tab-separated fields without a header: label, 13 integers with gaps, 26 hexadecimal ids with
    gaps. `teacher.json` beside the files holds the teacher's own AUC, the best any model can reach.

        fastdlrm generate --rows 2000000 --files 4 --gzip --seed 7 --out LOG
    """
    from fastdlrm.data.generate import generate as run

    with bar("generate", rows) as advance:
        report = run(
            out,
            num_rows=rows,
            num_files=files,
            gzip=gzip,
            seed=seed,
            shuffle_labels=shuffle_labels,
            progress=advance,
        )
    emit(
        report,
        json,
        lambda: {
            "rows": report.num_rows,
            "files": report.num_files,
            "click rate": report.click_rate,
            "best AUC": report.auc,
            "folder": str(out),
        },
    )
