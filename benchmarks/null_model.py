"""A model that takes no time: what is left of a query's time is the hand-over to a worker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.serve.messages import Task

LOADER = "null_model:load"


def load(task: Task) -> "NullModel":
    """Nothing is loaded."""
    return NullModel()


class NullModel:
    """Scores every row 0."""

    examples: Sequence[Mapping[str, Any]] = ()

    def warm(self, max_rows: int) -> Sequence[tuple[int, float]]:
        """About what a batch takes, so that nothing is refused."""
        return [(1, 1e-5), (max_rows, 2e-5)]

    def encode(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> int:
        """The number of rows."""
        return stop - start

    def predict(self, parts: Sequence[int]) -> NDArray[np.float32]:
        """Zeros."""
        return np.zeros(sum(parts), np.float32)

    def apply(self, path: Path) -> tuple[int, float]:
        """Nothing to apply to."""
        return 1, 0.0
