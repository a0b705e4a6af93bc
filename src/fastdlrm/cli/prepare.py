"""`fastdlrm prepare`: raw files -> dataset."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import (
    Config,
    Inputs,
    Json,
    Memory,
    OnBadRow,
    Overrides,
    bad_row_policy,
    bytes_of,
    emit,
)
from fastdlrm.cli.progress import steps


def prepare(
    config: Config,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Dataset folder to make; must not exist.")],
    memory: Memory = "4GiB",
    workers: Annotated[int, typer.Option(help="Tasks at once, one a core.", min=1)] = 2,
    ray: Annotated[
        str,
        typer.Option(help="Address of a Ray cluster that does the tasks; local: here."),
    ] = "",
    skip_disk_check: Annotated[
        bool, typer.Option(help="Begin even if the disk seems too small by the estimate.")
    ] = False,
    on_bad_row: OnBadRow = "error",
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Turn raw files into a dataset: fitted vocabularies, splits, shuffled train rows.

    The config's [data] section says how the files look and which columns are features. The files
    of a glob are taken in natural order (day_2 before day_10), which is what splits by file count.
    Killed or failed, the same command goes on where it stopped.

        fastdlrm prepare --config criteo-generated --input 'LOG/*.gz' --out DATA --memory 1GiB
    """
    from fastdlrm.config import load_config
    from fastdlrm.data.disk import require_disk
    from fastdlrm.data.prepare import prepare as run
    from fastdlrm.data.source import expand_inputs
    from fastdlrm.train.recipe import Recipe

    recipe = load_config(config, Recipe, overrides or ())
    paths = expand_inputs(inputs)
    if not skip_disk_check:
        require_disk(paths, recipe.data, out)
    with steps() as update:
        manifest = run(
            paths,
            recipe.data,
            out,
            memory_bytes=bytes_of(memory),
            num_workers=workers,
            on_bad_row=bad_row_policy(on_bad_row),
            progress=update,
            ray=ray,
        )

    def human() -> dict[str, object]:
        lines: dict[str, object] = {}
        for name, split in manifest.splits.items():
            rate = split.num_positives / split.num_rows
            lines[name] = f"{split.num_rows:,} rows, label rate {rate:.4f}"
        sizes = [t.num_embeddings for t in manifest.encoding.tables.values()]
        lines["tables"] = (
            f"{len(sizes)}, {sum(sizes):,} rows in all, largest {max(sizes, default=0):,}"
        )
        lines["bad rows skipped"] = sum(f.num_bad_rows for f in manifest.inputs)
        lines["folder"] = str(out)
        return lines

    emit(manifest, json, human)
