"""`fastdlrm report`: results of benchmarks, studies, runs, evaluations -> page, Markdown, JSON."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import Json


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Results of `fastdlrm bench` and of `fastdlrm eval --out`, folders of runs and "
            "studies."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write, .html, .md or .json; or a folder, for report.html, .md and .json."
        ),
    ],
    title: Annotated[str, typer.Option(help="Of the report.")] = "Report",
    json: Json = False,
) -> None:
    """Charts and tables of benchmarks, studies and training runs: one page that loads nothing.

    Results of one benchmark and model, from several machines, are drawn together.

        fastdlrm report RESULT.json RUN --out report.html
    """
    import msgspec

    from fastdlrm.report.output import check, output_files, write
    from fastdlrm.report.page_text import tree
    from fastdlrm.report.sources import read_sources
    from fastdlrm.report.study import study_page

    files = output_files(out)
    for file in files:
        check(file)
    page = study_page(read_sources(sources), title)
    for file in files:
        write(page, file)
    if json:
        typer.echo(msgspec.json.encode(tree(page)).decode())
        return
    typer.echo(f"written to {', '.join(map(str, files))}")
