"""How the numbers of a column lie: moments and exact quantiles, in memory of a fixed size.

A column is a sequence of float32 arrays, one a part, without NaN; each is read a block at a time.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Column = Sequence[NDArray[np.float32]]

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Shares of the values for which `Distribution` gives a bound."""

BLOCK_VALUES = 1 << 17
"""Values looked at together: temporaries stay in the cache."""
_HALF = 1 << 16


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers, summed up."""

    num_values: int
    mean: float
    std: float
    """Square root of the mean squared deviation."""
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]
    """For each of QUANTILES the least value that so large a share of the values do not exceed."""


def distribution(column: Column) -> Distribution:
    """Sum up a column of at least one value."""
    num_values = sum(map(len, column))
    mean, squares = _moments(column)
    low, *quantiles, high = quantiles_of(column, (0.0, *QUANTILES, 1.0))
    return Distribution(
        num_values=num_values,
        mean=mean,
        std=float(np.sqrt(squares / num_values)),
        minimum=low,
        maximum=high,
        quantiles=tuple(quantiles),
    )


def quantiles_of(column: Column, shares: Sequence[float]) -> list[float]:
    """The least value that each share of the values does not exceed; exact.

    Two passes: the first counts the upper halves of the numbers' bits, the second the lower halves
    where a quantile lies.

    Args:
        column: At least one value.
        shares: 0 (the least value) to 1 (the largest).
    """
    num_values = sum(map(len, column))
    ranks = np.maximum(np.ceil(np.asarray(shares) * num_values).astype(np.int64), 1) - 1
    counts = np.zeros(_HALF, dtype=np.int64)
    for keys in _ordered(column):
        counts += np.bincount(keys >> 16, minlength=_HALF)
    ends = np.cumsum(counts)
    upper = np.searchsorted(ends, ranks, side="right")
    within = ranks - (ends[upper] - counts[upper])
    lower_counts = {int(half): np.zeros(_HALF, dtype=np.int64) for half in upper}
    for keys in _ordered(column):
        halves = keys >> 16
        for half, found in lower_counts.items():
            found += np.bincount(keys[halves == half] & (_HALF - 1), minlength=_HALF)
    lower = [
        np.searchsorted(np.cumsum(lower_counts[int(half)]), rank, side="right")
        for half, rank in zip(upper, within, strict=True)
    ]
    return _numbers((upper << 16) + np.array(lower)).tolist()


def counts_between(column: Column, edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """Values in each bin: x <= edges[0], then edges[i - 1] < x <= edges[i], then edges[-1] < x.

    Args:
        column: The values.
        edges: Ascending, shape (n,).

    Returns:
        Shape (n + 1,).
    """
    counts = np.zeros(len(edges) + 1, dtype=np.int64)
    for values in blocks(column):
        counts += np.bincount(np.searchsorted(edges, values), minlength=len(counts))
    return counts


def blocks(column: Column) -> Iterator[NDArray[np.float32]]:
    """The column's values, a block at a time."""
    for values in column:
        for start in range(0, len(values), BLOCK_VALUES):
            yield values[start : start + BLOCK_VALUES]


def _moments(column: Column) -> tuple[float, float]:
    """Mean, and sum of squared deviations from it, merged block by block.

    Source: Chan, Golub, LeVeque 1979, Updating Formulae and a Pairwise Algorithm.
    """
    num_before, mean, squares = 0, 0.0, 0.0
    for values in blocks(column):
        block = values.astype(np.float64)
        block_mean = float(block.mean())
        num_all = num_before + len(block)
        step = block_mean - mean
        squares += float(np.square(block - block_mean).sum())
        squares += step * step * num_before * len(block) / num_all
        mean += step * len(block) / num_all
        num_before = num_all
    return mean, squares


def _ordered(column: Column) -> Iterator[NDArray[np.int64]]:
    """The bits of the values as whole numbers from 0 to 2**32 - 1 in the values' order."""
    for values in blocks(column):
        bits = values.view(np.int32).astype(np.int64)
        yield np.where(bits < 0, -1 - bits, bits + (1 << 31))


def _numbers(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """The inverse of `_ordered`."""
    bits = np.where(keys < 1 << 31, -1 - keys, keys - (1 << 31))
    return bits.astype(np.int32).view(np.float32) + np.float32(0)  # -0 is 0
