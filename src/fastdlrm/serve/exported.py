"""The exported model in a worker: a request's inputs to encoded rows, rows to scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.delta import read_delta
from fastdlrm.export.model import ExportedModel, request_inputs
from fastdlrm.serve.messages import Task

NUM_EXAMPLES = 8
AUTO = "auto"


def load_exported(task: Task) -> "ServedExport":
    """Load what a worker serves.

    Raises:
        ExportError: No exported model there, it is damaged, or it scores otherwise than when it
            was exported.
    """
    program: Any = None if task.program == AUTO else task.program
    model = ExportedModel.load(
        Path(task.folder), device=task.device, program=program, check=task.check
    )
    return ServedExport(model)


class ServedExport:
    """An exported model as a worker uses it, see `loading.ServedModel`.

    Args:
        model: The model.
    """

    def __init__(self, model: ExportedModel) -> None:
        self._model = model
        self._encoder = model.encoder
        rows = model.warmup_rows()
        self._warmup = rows
        self.examples: Sequence[Mapping[str, Any]] = rows.slice(0, NUM_EXAMPLES).to_pylist()
        self.encode = self._encoder.encode

    def warm(self, max_rows: int) -> Sequence[tuple[int, float]]:
        """Score 1, 2, 4, .. `max_rows` rows of text, twice each: rows and seconds of the second."""
        self._encoder.warm()
        measured = []
        sizes = [2**power for power in range(max_rows.bit_length())]
        for size in sorted({*sizes, max_rows}):
            places = pa.array(np.arange(size) % self._warmup.num_rows)
            inputs = request_inputs(self._warmup.take(places))
            for _ in range(2):
                started = perf_counter()
                self.predict([self.encode(inputs, 0, size)])
                took_s = perf_counter() - started
            measured.append((size, took_s))
        return measured

    def predict(self, parts: Sequence[Any]) -> NDArray[np.float32]:
        """Scores of the rows of all parts, in order, shape (B,)."""
        return self._model.predict(self._encoder.join(parts))

    def apply(self, path: Path) -> tuple[int, float]:
        """Apply a delta: its sequence number, and when it was made, in seconds since 1970.

        Raises:
            ExportError: It does not follow the last one, or does not fit.
        """
        delta = read_delta(path)
        self._model.apply(delta)
        return delta.sequence, delta.created_s
