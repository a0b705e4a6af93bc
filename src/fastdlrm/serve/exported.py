"""The exported model in a worker: a request's inputs to encoded rows, rows to scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.delta import read_delta
from fastdlrm.export.model import ExportedModel
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
        examples = model.warmup_rows().slice(0, NUM_EXAMPLES)
        self.examples: Sequence[Mapping[str, Any]] = examples.to_pylist()
        self.encode = self._encoder.encode

    def warm(self, max_rows: int) -> Sequence[tuple[int, float]]:
        """Score requests of all sizes: rows, and seconds each took once warm."""
        return self._model.warm(max_rows)

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
