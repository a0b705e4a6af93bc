"""A dense feature's numbers in each split, and how far they lie from train's."""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.data.distribution import (
    Column,
    Distribution,
    blocks,
    counts_between,
    distribution,
    quantiles_of,
)
from fastdlrm.data.drift import Drift, drift

NUM_BARS = 40
_SHOWN = (0.001, 0.999)
"""The quantiles of train between which the bars of a histogram lie."""
_DECILES = tuple(i / 10 for i in range(1, 10))
"""Of train, between the bins in which drift is measured."""


class DenseSplit(msgspec.Struct, frozen=True, kw_only=True):
    """A dense feature in one split."""

    distribution: Distribution
    fill_share: float
    """Share of rows that hold the fill: those that lacked a value, and those that had this one."""
    histogram: tuple[int, ...]
    """Rows in each bar."""
    drift: Drift | None
    """From train, over the bins between train's deciles; None for train itself."""


def dense_splits(
    columns: Mapping[str, Column], fill: np.float32
) -> tuple[tuple[float, ...], dict[str, DenseSplit]]:
    """Sum up a dense feature's column in each split.

    Args:
        columns: By split, train among them; none is empty.
        fill: What stands in place of a missing value.

    Returns:
        The edges between the bars of the histograms, and the splits' statistics.
    """
    train = columns["train"]
    low, high, *found_deciles = quantiles_of(train, (*_SHOWN, *_DECILES))
    edges = _bar_edges(low, high)
    deciles = np.unique(np.array(found_deciles, dtype=np.float32))
    train_bins = counts_between(train, deciles)
    found = {}
    for name, column in columns.items():
        summed = distribution(column)
        found[name] = DenseSplit(
            distribution=summed,
            fill_share=sum(int((values == fill).sum()) for values in blocks(column))
            / summed.num_values,
            histogram=tuple(counts_between(column, edges).tolist()),
            drift=None if name == "train" else drift(train_bins, counts_between(column, deciles)),
        )
    return tuple(edges.tolist()), found


def _bar_edges(low: float, high: float) -> NDArray[np.float32]:
    """Inner edges of bars of equal width; a value that most rows share lies inside its bar."""
    if low == high:
        return np.array([], dtype=np.float32)
    edges = np.linspace(low, high, NUM_BARS - 1) - (high - low) / (NUM_BARS - 2) / 2
    return np.unique(edges.astype(np.float32))
