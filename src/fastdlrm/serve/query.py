"""One query as it goes to an engine, and the scores that come back."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.payload import Payload


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked."""

    num_rows: int
    """Samples, N."""
    payload: Payload
    """The inputs, ready to be written to shared memory."""
    deadline_s: float
    """Time of the event loop by which the scores are of use."""
    priority: int = 0
    """1 is the highest, larger ones are lower; 0: the default, below all."""


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine answers."""

    scores: NDArray[np.float32]
    """Probabilities of a positive label, shape (N,)."""
    queue_ns: int
    """From submission until the first worker had a part."""
    encode_ns: int
    """In the worker: columns to ids and numbers; of the slowest part."""
    compute_ns: int
    """In the worker: the model; of the slowest part."""
