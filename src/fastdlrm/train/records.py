"""Training records: one JSON line each in `records.jsonl`, and TensorBoard where it is installed.

A record is {"step", "kind": "train" | "validation", "values": {...}, "timing": {...}}; `values` are
the same for the same seed, `timing` is not. A resumed run drops the records after its checkpoint,
so the file reads as if nothing had happened.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastdlrm.contracts.manifest import write_atomic


class Records:
    """Writer of a run's records.

    Args:
        run: The run's folder.
        step: Optimizer steps done so far; later records are dropped.
    """

    def __init__(self, run: Path, step: int) -> None:
        path = run / "records.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        write_atomic(path, "".join(kept).encode())
        self._file = path.open("a", encoding="utf-8")
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
        record = {"step": step, "kind": kind, "values": dict(values), "timing": dict(timing)}
        self._file.write(json.dumps(record) + "\n")
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


def _lines(path: Path) -> list[str]:
    """Whole lines of the file; a line cut short by a kill is dropped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]
