"""Rows of a table that take the place of an exported model's, while it is served.

A delta is a safetensors file of `ids` (int64) and `rows` (float32) whose metadata says the rest;
files sort by sequence number: 000000042.safetensors.

Shapes: n rows, D embedding dim.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import ExportError

DELTAS = "deltas"
"""Folder of a model's deltas, inside the model."""
SUFFIX = ".safetensors"


class Delta(NamedTuple):
    """Rows of one table.

    Attributes:
        table: Whose rows.
        ids: Rows of the table, shape (n,), int64, distinct, not negative.
        rows: Their numbers, shape (n, D), float32, finite.
        sequence: 1 for the first delta of a model, then one more each.
        created_s: When it was made, in seconds since 1970: what staleness is counted from.
        base: sha256 of the file of tables that it was made for; empty: of any model that has
            such a table.
    """

    table: str
    ids: NDArray[np.int64]
    rows: NDArray[np.float32]
    sequence: int
    created_s: float
    base: str = ""


def delta_path(folder: Path, sequence: int) -> Path:
    """Where a delta lies in a model's folder of deltas."""
    return folder / f"{sequence:09d}{SUFFIX}"


def sequences(folder: Path) -> list[int]:
    """Sequence numbers of the deltas in a folder, ascending; none where there is no folder."""
    names = [p.name.removesuffix(SUFFIX) for p in folder.glob(f"*{SUFFIX}")]
    return sorted(int(name) for name in names if name.isdigit())


def write_delta(folder: Path, delta: Delta) -> Path:
    """Write a delta so that a reader sees all of it or none.

    Raises:
        ExportError: Its arrays do not fit each other, or hold what no table can; there is one of
            its number.
    """
    path = delta_path(folder, delta.sequence)
    _require_sound(path, delta)
    if path.exists():
        raise ExportError(
            f"{path}: there is one already, and servers may have applied it; take the next number"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"ids": delta.ids, "rows": delta.rows}
    facts = {"table": delta.table, "sequence": delta.sequence}
    facts |= {"created_s": delta.created_s, "base": delta.base}
    write_atomic(path, save(tensors, {"delta": json.dumps(facts)}))
    return path


def read_delta(path: Path) -> Delta:
    """Read a delta.

    Raises:
        ExportError: It is missing, damaged, or holds what no table can.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"]["delta"])
        delta = Delta(
            table=str(facts["table"]),
            ids=tensors["ids"],
            rows=tensors["rows"],
            sequence=int(facts["sequence"]),
            created_s=float(facts["created_s"]),
            base=str(facts.get("base", "")),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise ExportError(f"{path}: no delta: {problem}; write it again") from problem
    _require_sound(path, delta)
    return delta


def _require_sound(path: Path, delta: Delta) -> None:
    ids, rows = delta.ids, delta.rows
    if ids.dtype != np.int64 or ids.ndim != 1 or rows.dtype != np.float32:
        what = f"ids {ids.dtype}{ids.shape} and rows {rows.dtype}; int64 (n,), float32 are allowed"
    elif rows.ndim != 2 or len(rows) != len(ids):
        what = f"{len(ids)} ids for rows {rows.shape}; one row an id is needed"
    elif delta.sequence < 1:
        what = f"sequence {delta.sequence}; 1 or more is allowed"
    elif len(ids) and (ids.min() < 0 or len(np.unique(ids)) < len(ids)):
        what = "an id is negative or stands twice"
    elif not np.isfinite(rows).all():
        what = "a row holds NaN or infinity"
    else:
        return
    raise ExportError(f"{path}: {what}; write the delta again")
