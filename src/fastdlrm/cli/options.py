"""Options that several commands share, and how their results are printed."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fastdlrm.errors import ConfigError

Config = Annotated[
    str, typer.Option("--config", help="A preset's name, or the path of a TOML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one key, e.g. --set train.num_epochs=2. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Inputs = Annotated[
    list[str],
    typer.Option("--input", help="Raw file, or a glob in quotes, e.g. 'LOG/*.gz'. Repeatable."),
]
Memory = Annotated[
    str, typer.Option(help="Most memory to use, e.g. 1GiB. Larger data spills to disk.")
]
OnBadRow = Annotated[
    str, typer.Option("--on-bad-row", help="error: refuse the file; skip: leave the row out.")
]
RunFolder = Annotated[Path, typer.Option("--run", help="Folder made by `fastdlrm train`.")]
CheckpointName = Annotated[
    str, typer.Option("--checkpoint", help="best, last, or a step's number.")
]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_of(text: str) -> int:
    """A size as bytes: "1GiB", "512 MiB", "2G" (1024-based) or a plain number.

    Raises:
        ConfigError: It is not a size.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"size {text!r}: expected a number and a unit, e.g. 512MiB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def bad_row_policy(text: str) -> Any:
    """Check `--on-bad-row`.

    Raises:
        ConfigError: Neither error nor skip.
    """
    if text not in ("error", "skip"):
        raise ConfigError(f"--on-bad-row {text!r}: error or skip is allowed")
    return text


def emit(result: Any, as_json: bool, human: Callable[[], Mapping[str, Any]]) -> None:
    """Print a result: JSON, or one "name  value" line each.

    None is a metric that the rows do not define, such as the AUC of one class.
    """
    if as_json:
        typer.echo(msgspec.json.encode(result).decode())
        return
    lines = human()
    width = max(map(len, lines), default=0)
    for name, value in lines.items():
        typer.echo(f"{name:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "undefined (one class only)"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
