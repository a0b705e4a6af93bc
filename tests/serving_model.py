"""A model for workers whose answers and service times are planted: score = 2 * x + offset.

The "folder" of it is a JSON file: `batch_s` and `row_s` (time a batch takes, slept), `load_s`,
`load` ("die": the process ends while it loads; "refuse": an ExportError), `lives` (loads that
succeed before it dies of loading). Values of x that do more than score:
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastdlrm.contracts.payload import pack
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import ExportError, RequestError
from fastdlrm.serve.messages import Task
from fastdlrm.serve.query import Query

LOADER = "tests.serving_model:load"
WRONG, FAULT, BATCH_FAULT, POISON, HANG, SHORT = -1.0, -2.0, -3.0, -4.0, -5.0, -6.0
"""RequestError of its part; an error of encoding; of scoring; death of the worker; a hang; too few
scores."""


def load(task: Task) -> "PlantedModel":
    plan = json.loads(Path(task.folder).read_text())
    time.sleep(plan.get("load_s", 0.0))
    if plan.get("load") == "refuse":
        raise ExportError(f"{task.folder}: golden row 3 scores otherwise")
    if "lives" in plan:
        counter = Path(task.folder).with_suffix(".loads")
        with counter.open("a") as file:
            file.write("x")
        if counter.stat().st_size > plan["lives"]:
            os.kill(os.getpid(), signal.SIGKILL)
    if plan.get("load") == "die":
        os._exit(3)
    return PlantedModel(plan)


class PlantedModel:
    examples = ({"x": "1.5"}, {"x": None})

    def __init__(self, plan: dict[str, Any]) -> None:
        self._batch_s = plan.get("batch_s", 0.0)
        self._row_s = plan.get("row_s", 0.0)
        self._offset = 0.0
        self._sequence = 0

    def warm(self, max_rows: int) -> list[tuple[int, float]]:
        sizes = (1, max(max_rows // 2, 1), max_rows)
        return [(rows, self._batch_s + rows * self._row_s + 1e-5) for rows in sizes]

    def encode(self, inputs: dict[str, WireTensor], start: int, stop: int) -> np.ndarray:
        x = inputs["x"].values()[start:stop]
        if WRONG in x:
            raise RequestError(f"row {start}: {WRONG} is out of range; correct the row")
        if FAULT in x:
            raise KeyError("planted")
        return x

    def predict(self, parts: list[np.ndarray]) -> np.ndarray:
        x = np.concatenate(parts)
        if self._batch_s or self._row_s:
            time.sleep(self._batch_s + len(x) * self._row_s)
        if POISON in x:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG in x:
            time.sleep(3600)
        if BATCH_FAULT in x:
            raise ArithmeticError("planted too")
        scores = (2 * x + self._offset).astype(np.float32)
        return scores[1:] if SHORT in x else scores

    def apply(self, path: Path) -> tuple[int, float]:
        delta = json.loads(path.read_text())
        if delta["sequence"] != self._sequence + 1:
            raise ExportError(f"delta {delta['sequence']} after {self._sequence}")
        if delta.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        self._sequence, self._offset = delta["sequence"], delta["offset"]
        return self._sequence, delta["created_s"]


def query_of(*values: float, within_s: float = 30.0, priority: int = 0) -> Query:
    """A query of these rows."""
    return query_of_rows(np.array(values, np.float32), within_s=within_s, priority=priority)


def query_of_rows(x: np.ndarray, *, within_s: float = 30.0, priority: int = 0) -> Query:
    """A query of these rows, with time until an answer is of use."""
    return Query(
        num_rows=len(x),
        payload=pack({"x": WireTensor.from_array(x)}),
        deadline_s=time.monotonic() + within_s,
        priority=priority,
    )
