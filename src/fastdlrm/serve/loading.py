"""The door between a worker and the model it serves."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import ServeError
from fastdlrm.serve.messages import Task


class ServedModel(Protocol):
    """What a worker needs of a model. Scores of a row never depend on what is scored with it."""

    @property
    def examples(self) -> Sequence[Mapping[str, Any]]:
        """Some raw rows, a value a column; None is a missing value."""
        ...

    def warm(self, max_rows: int) -> Sequence[tuple[int, float]]:
        """Score batches of all sizes up to `max_rows`: rows and seconds of some of them."""
        ...

    def encode(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> Any:
        """Rows `start` to `stop` of a query.

        Args:
            inputs: Views of shared memory, valid until the batch is scored.
            start: First row.
            stop: Behind the last row.

        Raises:
            RequestError: A value is wrong.
        """
        ...

    def predict(self, parts: Sequence[Any]) -> NDArray[np.float32]:
        """Scores of the rows of encoded parts, in order, shape (B,)."""
        ...

    def apply(self, path: Path) -> tuple[int, float]:
        """Apply a delta: its sequence number, and when it was made, in seconds since 1970.

        Raises:
            ExportError: It does not follow the last one, or does not fit.
        """
        ...


def load(task: Task) -> ServedModel:
    """Load the model of a worker.

    Raises:
        ServeError: The loader cannot be found.
        ExportError: No exported model there, or it is damaged.
    """
    module, _, name = task.loader.partition(":")
    try:
        loader: Callable[[Task], ServedModel] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ServeError(
            f"loader {task.loader!r}: {problem}; name a function as module:function"
        ) from problem
    return loader(task)
