"""How far a feature's values in one split lie from those in train."""

from math import log, sqrt
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.data.lookups import Counts, most_frequent

BinCounts = NDArray[np.integer[Any]]

NUM_FREQUENT = 98
"""The most values of a table that have a bin of their own; the others share one."""


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Distance of a split's values from train's."""

    distance: float
    """Jensen-Shannon distance over the bins, 0 (the same shares) to 1 (no bin in common)."""
    chance: float
    """What to expect were both drawn from one distribution, about: less says nothing."""


def drift(train: BinCounts, other: BinCounts) -> Drift | None:
    """Compare two splits by their counts in the same bins.

    Args:
        train: Shape (bins,).
        other: Shape (bins,).

    Returns:
        None where a split has no value.

    Source: Lin 1991, Divergence Measures Based on the Shannon Entropy; that its root is a
        distance: Endres and Schindelin 2003.
    """
    num_train, num_other = int(train.sum()), int(other.sum())
    if not num_train or not num_other:
        return None
    p, q = train / num_train, other / num_other
    mean = (p + q) / 2
    divergence = (_relative_entropy(p, mean) + _relative_entropy(q, mean)) / 2
    return Drift(
        distance=sqrt(max(0.0, min(1.0, divergence))),
        chance=_chance(int(np.count_nonzero(mean)), num_train, num_other),
    )


def id_bins(train: Counts, first_id: int) -> NDArray[np.int64]:
    """The rows of a table that have a bin each in `binned`: the reserved, train's most frequent.

    Ids by the thousand with a lookup or two each differ from split to split by chance alone.

    Args:
        train: Lookups of each row, shape (rows,).
        first_id: The first row that stands for a value; those before are reserved.
    """
    return np.concatenate([np.arange(first_id), most_frequent(train, NUM_FREQUENT, first_id)])


def binned(counts: Counts, rows: NDArray[np.int64]) -> BinCounts:
    """The counts of `rows`, then that of all other rows, shape (len(rows) + 1,)."""
    own = counts[rows].astype(np.int64)
    return np.append(own, int(counts.sum(dtype=np.int64)) - own.sum())


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Of p to q in bits."""
    is_there = p > 0
    return float((p[is_there] * np.log2(p[is_there] / q[is_there])).sum())


def _chance(num_bins: int, num_train: int, num_other: int) -> float:
    """Root of the mean divergence of two samples of one distribution, in large samples.

    The divergence in bits is about sum((p - q)**2 / r) / (8 log 2), r the shares of the bins, and
    the mean of that sum is (bins - 1) (1 / n + 1 / m).

    Source: Grosse et al. 2002, Analysis of Symbolic Sequences Using the Jensen-Shannon Divergence,
        for its chi-square law.
    """
    mean = (num_bins - 1) * (1 / num_train + 1 / num_other) / (8 * log(2))
    return min(1.0, sqrt(mean))
