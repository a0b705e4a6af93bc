"""`fastdlrm download`: public data set -> raw files."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import Json, emit
from fastdlrm.cli.progress import transfers
from fastdlrm.errors import ConfigError


def download(
    name: Annotated[str, typer.Argument(help="Of the set; without it, the sets are listed.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the files.")] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="Only this file of the set. Repeatable.")
    ] = None,
    url: Annotated[
        str, typer.Option(help="Address to take instead; ending in /, that of the files' folder.")
    ] = "",
    url_table: Annotated[
        Path | None, typer.Option(help="TOML file with addresses of your own, as remote.toml.")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch a public data set: resumed where it was left, checked, complete or not there.

    Stopped in the middle, run it again: it goes on from the byte it had come to. Where no checksum
    is published, the first download's sha256 is recorded beside the files.

        fastdlrm download movielens-25m --out RAW
    """
    from fastdlrm.data.download import download as fetch
    from fastdlrm.data.remote import remote_sets, select_files

    sets = remote_sets(url_table)
    if not name:
        emit(sets, json, lambda: {key: found.about for key, found in sets.items()})
        return
    if out is None:
        raise ConfigError("--out is missing; name the folder for the files")
    files = select_files(sets, name, tuple(file or ()), url)
    for label in ("terms", "page", "note"):
        if text := getattr(sets[name], label):
            typer.echo(f"{label}: {text}", err=True)
    with transfers() as update:
        fetched = [fetch(wanted, out, progress=update) for wanted in files]
    emit(fetched, json, lambda: {f.name: f"{f.size_bytes:,} bytes, checked against {f.checked}"
                                 for f in fetched})  # fmt: skip
