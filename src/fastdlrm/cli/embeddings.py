"""`fastdlrm embeddings`: run + dataset -> what training has made of the embedding tables."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import CheckpointName, Json, RunFolder
from fastdlrm.cli.progress import stages
from fastdlrm.errors import ConfigError


def embeddings(
    run: RunFolder,
    data: Annotated[Path, typer.Option(help="Dataset folder the run was trained on.")],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write, .html, .md or .json; or a folder, for report.html, .md and .json."
        ),
    ],
    checkpoint: CheckpointName = "best",
    tables: Annotated[
        list[str] | None, typer.Option("--table", help="Only this table. Repeatable.")
    ] = None,
    near: Annotated[
        list[str] | None,
        typer.Option(
            help="TABLE=VALUE: a raw value whose neighbours are sought, in place of the most "
            "frequent ones. Repeatable."
        ),
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Of each value.", min=1)] = 8,
    json: Json = False,
) -> None:
    """Look at the embedding tables: norms, dead rows, lookups, neighbours, a projection.

    Tables are read slice by slice; they may exceed the memory.

        fastdlrm embeddings --run RUN --data DATA --out embeddings.html --near C1=68fd1e64
    """
    import msgspec

    from fastdlrm.report.embeddings import embedding_page
    from fastdlrm.report.output import check, output_files, write
    from fastdlrm.train.embeddings import Wanted, embedding_statistics

    files = output_files(out)
    for file in files:
        check(file)
    asked: dict[str, list[str]] = {}
    for one in near or ():
        table, equals, value = one.partition("=")
        if not equals:
            raise ConfigError(f"--near {one!r}: expected TABLE=VALUE")
        asked.setdefault(table, []).append(value)
    wanted = Wanted(tables=tables or (), near=asked, num_neighbours=neighbours)
    with stages() as update:
        found = embedding_statistics(run, data, wanted, checkpoint, update)
    page = embedding_page(found)
    for file in files:
        write(page, file)
    if json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    typer.echo(f"written to {', '.join(map(str, files))}")
