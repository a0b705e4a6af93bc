"""Logits -> probabilities, by numpy in float64: a number's bits are its own.

torch's logistic function rounds the last numbers of a tensor otherwise than those before them, so
that a score would depend on how many are computed together.
"""

import numpy as np
from numpy.typing import NDArray


def logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow, of any shape."""
    small = np.exp(-np.abs(x))
    values: NDArray[np.float64] = np.where(x >= 0, 1.0, small) / (1.0 + small)
    return values
