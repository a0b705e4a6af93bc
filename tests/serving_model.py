"""A model for workers whose scores are worked out by hand and whose time is planted.

It scores a row of column `x` with x / 1000 and sleeps as long a batch and a row as the file
`seconds` of its folder says; a value above 1e6 is refused, 666 kills the worker, 777 keeps it busy
for ever.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import ExportError, RequestError
from fastdlrm.serve.messages import Task

LOADER = "tests.serving_model:load"
LIMIT, DEADLY, ENDLESS = 1e6, 666, 777


def write_model(folder: Path, batch_s: float = 0.0, row_s: float = 0.0) -> Path:
    """A folder that `load` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seconds").write_text(f"{batch_s} {row_s}")
    return folder


def load(task: Task) -> "PlantedModel":
    """See `fastdlrm.serve.loading`."""
    path = Path(task.folder) / "seconds"
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    return PlantedModel(*map(float, path.read_text().split()))


class PlantedModel:
    """Scores x / 1000, plus a delta's number."""

    examples: Sequence[Mapping[str, Any]] = ({"x": 1.0},)

    def __init__(self, batch_s: float, row_s: float) -> None:
        self._batch_s, self._row_s = batch_s, row_s
        self._sequence = 0

    def warm(self, max_rows: int) -> Sequence[tuple[int, float]]:
        return [(rows, self._batch_s + self._row_s * rows) for rows in (1, max_rows)]

    def encode(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> NDArray[Any]:
        x = inputs["x"].values()[start:stop].copy()
        if (x > LIMIT).any():
            raise RequestError(f"x is {x.max():g}; {LIMIT:g} is the most")
        return x

    def predict(self, parts: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        x = np.concatenate(parts)
        if (x == DEADLY).any():
            os._exit(3)
        if (x == ENDLESS).any():
            time.sleep(3600)
        time.sleep(self._batch_s + self._row_s * len(x))
        return (x / 1000 + self._sequence).astype(np.float32)

    def apply(self, path: Path) -> tuple[int, float]:
        sequence = int(path.read_text())
        if sequence != self._sequence + 1:
            raise ExportError(f"delta {sequence} after {self._sequence}")
        self._sequence = sequence
        return sequence, time.time()
