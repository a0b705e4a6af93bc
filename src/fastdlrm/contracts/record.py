"""Training records, one JSON line each.

RUN/records.jsonl   Records, by ascending step
"""

from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.errors import DataError

RECORDS = "records.jsonl"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen after a step."""

    step: int
    """Optimizer steps done."""
    kind: str
    """train or validation."""
    values: dict[str, Any]
    """The same for the same seed."""
    timing: dict[str, float]
    """Not the same."""


def read_records(run: Path) -> list[Record]:
    """A run's records so far.

    Raises:
        DataError: There are none, or a line is damaged.
    """
    path, records = run / RECORDS, []
    for number, line in enumerate(record_lines(run), 1):
        try:
            records.append(msgspec.json.decode(line, type=Record))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise DataError(
                f"{path}, line {number}: damaged: {problem}; delete the line, or train again"
            ) from problem
    if not records:
        raise DataError(f"{path}: no record yet; train for train.log_every_steps steps or more")
    return records


def record_lines(run: Path) -> list[bytes]:
    """Whole lines of a run's records; a line cut short by a kill is dropped."""
    path = run / RECORDS
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith(b"\n")]
