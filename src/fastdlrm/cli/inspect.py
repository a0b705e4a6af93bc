"""`fastdlrm inspect`: raw file -> what it seems to be, and a config to begin with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdlrm.cli.options import Json
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


def inspect(
    file: Annotated[Path, typer.Argument(help="CSV or TSV (plain or .gz), or Parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="Write a complete config there, e.g. my.toml.")
    ] = None,
    sample_rows: Annotated[int, typer.Option(help="First rows to look at.", min=1)] = 100_000,
    json: Json = False,
) -> None:
    """Infer a raw file's schema: columns, statistics, warnings, and a config to begin with.

    A guess to be read, not trusted: which column is the label, which numbers are categories.

        fastdlrm inspect clicks.csv --out clicks.toml
    """
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
