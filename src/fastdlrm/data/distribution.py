"""How the numbers of a column lie: moments and exact quantiles, in memory of a fixed size.

A column is a sequence of float32 arrays, one a part, without NaN. Quantiles and bins come of two
passes that count keys, whole numbers in the values' order: first by their upper bits, then, for the
upper bits that matter, by their lower ones.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

Column = Sequence[NDArray[np.float32]]

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Shares of the values for which `Distribution` gives a bound."""

BLOCK_VALUES = 1 << 17
"""Values looked at together: temporaries stay in the cache."""
_LOWER_BITS = 14
_NUM_UPPER, _NUM_LOWER = 1 << (32 - _LOWER_BITS), 1 << _LOWER_BITS
_SIGN = 1 << 31


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

    Args:
        column: At least one value.
        shares: 0 (the least value) to 1 (the largest).
    """
    num_values = sum(map(len, column))
    ranks = np.maximum(np.ceil(np.asarray(shares) * num_values).astype(np.int64), 1) - 1
    before = _before(column)
    upper = np.searchsorted(before, ranks, side="right") - 1
    at_most, slots = _at_most(column, upper)
    within = ranks - before[upper]
    lower = [
        np.searchsorted(at_most[slot], rank, side="right")
        for slot, rank in zip(slots, within, strict=True)
    ]
    return _numbers((upper << _LOWER_BITS) + np.array(lower)).tolist()


def counts_between(column: Column, edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """Values in each bin: x <= edges[0], then edges[i - 1] < x <= edges[i], then edges[-1] < x.

    Args:
        column: The values.
        edges: Ascending, shape (n,).

    Returns:
        Shape (n + 1,).
    """
    keys = _keys(edges)
    at_most, slots = _at_most(column, keys >> _LOWER_BITS)
    up_to_edge = _before(column)[keys >> _LOWER_BITS] + at_most[slots, keys & (_NUM_LOWER - 1)]
    return np.diff(up_to_edge, prepend=0, append=sum(map(len, column)))


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


def _before(column: Column) -> NDArray[np.int64]:
    """For each value of the upper bits the number of keys with a smaller one."""
    counts = np.zeros(_NUM_UPPER, dtype=np.int64)
    for values in column:
        _count_upper(values.view(np.uint32), counts)
    return np.cumsum(counts) - counts


def _at_most(
    column: Column, upper: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the keys that share their upper bits, the number of those up to each value of the lower.

    Returns:
        Shape (different upper bits, values of the lower bits), and the row of each of `upper`.
    """
    wanted, slots = np.unique(upper, return_inverse=True)
    slot_of = np.full(_NUM_UPPER, -1, dtype=np.int16)
    slot_of[wanted] = np.arange(len(wanted))
    counts = np.zeros((len(wanted), _NUM_LOWER), dtype=np.int64)
    for values in column:
        _count_lower(values.view(np.uint32), slot_of, counts)
    return np.cumsum(counts, axis=1), slots


def _keys(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole numbers from 0 to 2**32 - 1 in the order of the numbers: their bits, mended."""
    bits = (numbers + np.float32(0)).view(np.uint32).astype(np.int64)
    return np.where(bits < _SIGN, bits + _SIGN, 2 * _SIGN - 1 - bits)


def _numbers(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """The inverse of `_keys`."""
    bits = np.where(keys < _SIGN, 2 * _SIGN - 1 - keys, keys - _SIGN)
    return bits.astype(np.uint32).view(np.float32) + np.float32(0)  # -0 is 0


@njit(cache=True, nogil=True)
def _key(bits: Any) -> Any:
    """`_keys` of one number's bits."""
    number = np.int64(bits)
    return number + _SIGN if number < _SIGN else 2 * _SIGN - 1 - number


@njit(cache=True, nogil=True)
def _count_upper(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """Count keys by their upper bits."""
    for one in bits:
        counts[_key(one) >> _LOWER_BITS] += 1


@njit(cache=True, nogil=True)
def _count_lower(
    bits: NDArray[np.uint32], slot_of: NDArray[np.int16], counts: NDArray[np.int64]
) -> None:
    """Count keys by their lower bits where the upper bits have a slot."""
    for one in bits:
        key = _key(one)
        slot = slot_of[key >> _LOWER_BITS]
        if slot >= 0:
            counts[slot, key & (_NUM_LOWER - 1)] += 1
