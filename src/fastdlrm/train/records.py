"""Writes training records, and to TensorBoard where it is installed.

A resumed run drops the records after its checkpoint, so the file reads as if nothing had happened.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.contracts.record import RECORDS, Record, record_lines


class Records:
    """Writer of a run's records.

    Args:
        run: The run's folder.
        step: Optimizer steps done so far; later records are dropped.
    """

    def __init__(self, run: Path, step: int) -> None:
        path = run / RECORDS
        lines = record_lines(run)
        kept = [line for line in lines if msgspec.json.decode(line, type=Record).step <= step]
        write_atomic(path, b"".join(kept))
        self._file = path.open("ab")
        self._board: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(
                str(run / "tensorboard"), purge_step=step + 1 if step else None
            )

    def add(
        self, step: int, kind: str, values: Mapping[str, Any], timing: Mapping[str, float]
    ) -> None:
        """Append a record."""
        record = Record(step=step, kind=kind, values=dict(values), timing=dict(timing))
        self._file.write(msgspec.json.encode(record) + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, value in {**values, **timing}.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Finish both writers."""
        self._file.close()
        if self._board is not None:
            self._board.close()
