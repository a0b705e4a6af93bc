"""`fastdlrm inspect`: raw file -> what it seems to be, and a config to begin with; dataset -> what
it holds.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdlrm.cli.options import Json
from fastdlrm.cli.progress import stages
from fastdlrm.errors import ConfigError

if TYPE_CHECKING:
    from fastdlrm.data.infer import Inference
    from fastdlrm.data.profile import ColumnStatistics

STARTER = """seed = 1

{data}
[model]
embedding_dim = 8
bottom_mlp = {bottom_mlp}
top_mlp = [64, 32]
interaction = "{interaction}"
init = "normal"

[train]
global_batch_size = 256
num_epochs = 10
best_metric = "log_loss"
early_stop_patience = 2
schedule = {{ name = "constant" }}

[train.dense_optimizer]
name = "adam"
learning_rate = 0.001

[train.sparse_optimizer]
name = "adam"
learning_rate = 0.002
"""
"""A complete config for a first run."""

SAMPLE_ROWS = 100_000


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="Raw file (CSV or TSV, plain or .gz; Parquet), or a dataset folder."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Of a raw file: write a complete config there, e.g. my.toml."),
    ] = None,
    sample_rows: Annotated[
        int | None,
        typer.Option(
            help=f"Of a raw file: first rows to look at, {SAMPLE_ROWS} if not given.", min=1
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Of a dataset: write one page with charts there.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a raw file seems to be, or what a prepared dataset holds.

    Raw file: columns, statistics, warnings, and a config to begin with. A guess to be read, not
    trusted: which column is the label, which numbers are categories.

        fastdlrm inspect clicks.csv --out clicks.toml

    Dataset: label rates, each feature's ids or numbers, how unevenly the tables' rows are looked
    up, how test differs from train.

        fastdlrm inspect DATA --html data.html
    """
    if path.is_dir():
        if out is not None or sample_rows is not None:
            raise ConfigError(
                f"{path} is a dataset; --out and --sample-rows are for a raw file: leave them out"
            )
        _inspect_dataset(path, html, json)
    elif html is not None:
        raise ConfigError(f"{path} is no dataset folder; --html is for a dataset: leave it out")
    else:
        _inspect_file(path, out, sample_rows or SAMPLE_ROWS, json)


def _inspect_dataset(folder: Path, html: Path | None, json: bool) -> None:
    import msgspec

    from fastdlrm.cli.dataset_text import dataset_text
    from fastdlrm.data.dataset_statistics import dataset_statistics

    if html is not None:
        from fastdlrm.report.dataset import dataset_page
        from fastdlrm.report.page import check_output

        check_output(html)
    with stages() as update:
        statistics = dataset_statistics(folder, update)
    if html is not None:
        dataset_page(statistics).write(html)
    if json:
        typer.echo(msgspec.json.encode(statistics).decode())
        return
    typer.echo(dataset_text(statistics))
    if html is not None:
        typer.echo(f"\npage written to {html}")


def _inspect_file(file: Path, out: Path | None, sample_rows: int, json: bool) -> None:
    import msgspec

    from fastdlrm.data.infer import infer

    if out is not None and (out.suffix != ".toml" or out.exists()):
        raise ConfigError(f"--out {out}: name a .toml file that does not exist yet")
    inference = infer(file, sample_rows)
    if out is not None:
        out.write_text(starter(inference), encoding="utf-8")
    if json:
        typer.echo(msgspec.json.encode(inference).decode())
        return
    typer.echo(f"{file.name}, first {inference.num_rows:,} rows\n")
    for column in inference.columns:
        typer.echo(_line(column, inference.num_rows))
    for warning in inference.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(f"\nconfig written to {out}" if out else "\n" + starter(inference))


def starter(inference: "Inference") -> str:
    """A complete config: the inferred [data] section, a small model, settings for a first run."""
    from fastdlrm.data.infer import to_toml

    schema = inference.config.schema()
    num_vectors = len(schema.sparse) + bool(schema.dense)
    return STARTER.format(
        data=to_toml(inference.config),
        bottom_mlp="[32, 8]" if schema.dense else "[]",
        interaction="dot" if num_vectors > 1 else "cat",
    )


def _line(column: "ColumnStatistics", num_rows: int) -> str:
    """What a column holds, and what the config makes of it."""
    parts = [column.kind, f"{column.num_distinct:,} distinct"]
    if column.missing_share:
        parts.append(f"{column.missing_share:.1%} missing")
    if column.minimum is not None:
        parts.append(f"{column.minimum:g} to {column.maximum:g}, mean {column.mean:.4g}")
    if column.top:
        top = (f"{text!r} {count / num_rows:.1%}" for text, count in column.top[:3])
        parts.append("most often " + ", ".join(top))
    return f"{column.name}: {'; '.join(parts)} -> {column.proposal}"
