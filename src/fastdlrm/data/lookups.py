"""How often each row of a table is looked up, and what follows for a cache of its rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.errors import DataError

Counts = NDArray[np.unsignedinteger[Any]]

CACHE_SHARES = (0.001, 0.01, 0.1)
"""Sizes of a cache, as shares of the rows, for which `Popularity` gives the hits."""
_NUM_RANKS = 80


class Popularity(msgspec.Struct, frozen=True, kw_only=True):
    """How unevenly the lookups spread over the rows; the row looked up most has rank 1.

    A cache here holds the rows of the first ranks, which no cache of its size can better.
    """

    num_rows: int
    """Rows, those never looked up included."""
    num_used_rows: int
    """Rows looked up at least once."""
    num_lookups: int
    ranks: tuple[int, ...]
    """From 1 to num_used_rows, evenly spaced on a logarithmic scale."""
    counts: tuple[int, ...]
    """Lookups of the row of each rank."""
    hits: tuple[float, ...]
    """Share of the lookups that the rows up to each rank take."""
    cache_hits: tuple[float, ...]
    """Share of the lookups that a cache of each of CACHE_SHARES of the rows takes."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How many rows are looked up how often: all that ranks need, and small for any table.

    Attributes:
        counts: Each number of lookups that occurs, from the largest down to 1, shape (n,).
        num_rows: Rows looked up so often, shape (n,).
        size: Rows of the tables, those never looked up included.
    """

    counts: NDArray[np.int64]
    num_rows: NDArray[np.int64]
    size: int

    @classmethod
    def of(cls, counts: Counts) -> "Spectrum":
        """Of a table's rows, each with its number of lookups, shape (rows,)."""
        found, num_rows = np.unique(counts[counts > 0], return_counts=True)
        return cls(found[::-1].astype(np.int64), num_rows[::-1].astype(np.int64), len(counts))

    @classmethod
    def merged(cls, spectra: Sequence["Spectrum"]) -> "Spectrum":
        """Of the rows of all tables together."""
        counts = np.concatenate([spectrum.counts for spectrum in spectra])
        found, place = np.unique(-counts, return_inverse=True)
        num_rows = np.zeros(len(found), dtype=np.int64)
        np.add.at(num_rows, place, np.concatenate([spectrum.num_rows for spectrum in spectra]))
        return cls(-found, num_rows, sum(spectrum.size for spectrum in spectra))

    def popularity(self) -> Popularity:
        """The lookups by rank."""
        num_used, num_lookups = int(self.num_rows.sum()), int(self.counts @ self.num_rows)
        spaced = np.geomspace(1, max(1, num_used), _NUM_RANKS)
        ranks = np.unique(np.rint(spaced).astype(np.int64))[: num_used or 0]
        cached = [int(share * self.size) for share in CACHE_SHARES]
        return Popularity(
            num_rows=self.size,
            num_used_rows=num_used,
            num_lookups=num_lookups,
            ranks=tuple(ranks.tolist()),
            counts=tuple(self.counts[np.searchsorted(self._last_ranks, ranks)].tolist()),
            hits=self._hits(ranks, num_lookups),
            cache_hits=self._hits(np.array(cached), num_lookups),
        )

    def rows_for(self, share: float) -> int:
        """The fewest rows that take a share of the lookups; 0 without lookups."""
        ends = np.cumsum(self.counts * self.num_rows)
        wanted = share * int(ends[-1]) if len(ends) else 0.0
        if not wanted:
            return 0
        place = int(np.searchsorted(ends, wanted))
        before = int(ends[place] - self.counts[place] * self.num_rows[place])
        rows_before = int(self.num_rows[:place].sum())
        return rows_before + math.ceil((wanted - before) / int(self.counts[place]))

    @property
    def _last_ranks(self) -> NDArray[np.int64]:
        """The last rank of the rows of each count."""
        return np.cumsum(self.num_rows)

    def _hits(self, ranks: NDArray[np.int64], num_lookups: int) -> tuple[float, ...]:
        """The share of the lookups that the rows up to each rank take."""
        ends = np.concatenate([[0], self._last_ranks])
        before = np.concatenate([[0], np.cumsum(self.counts * self.num_rows)])
        lookups = np.interp(ranks, ends, before)  # rows of one count add the same each
        return tuple((lookups / max(1, num_lookups)).tolist())


def row_counts(name: str, column: Sequence[NDArray[Any]], num_embeddings: int) -> Counts:
    """The number of lookups of each row of a table.

    Args:
        name: Of the feature, for messages.
        column: Unsigned ids, an array a part.
        num_embeddings: Rows of the table.

    Returns:
        Shape (num_embeddings,).

    Raises:
        DataError: An id is no row of the table.
    """
    is_small = sum(map(len, column)) < 1 << 32
    counts: Counts = np.zeros(num_embeddings, dtype=np.uint32 if is_small else np.uint64)
    for ids in column:
        outside = _count(ids, counts)
        if outside >= 0:
            raise DataError(
                f"feature {name!r}: id {outside} >= num_embeddings {num_embeddings}: the part is "
                "not the one that was written; prepare again"
            )
    return counts


def most_frequent(counts: Counts, num_rows: int, first_id: int) -> NDArray[np.int64]:
    """The rows of values that are looked up most, at most `num_rows` of them and none never.

    Most frequent first, ties by row; the reserved rows, those before `first_id`, stand aside.
    """
    values = counts[first_id:]
    num_rows = min(num_rows, len(values))
    if not num_rows:
        return np.empty(0, dtype=np.int64)
    least = max(1, np.partition(values, -num_rows)[-num_rows])
    above = np.flatnonzero(values > least)
    level = np.flatnonzero(values == least)[: num_rows - len(above)]
    rows = np.concatenate([above, level])
    return first_id + rows[np.argsort(-values[rows].astype(np.int64), kind="stable")]


@njit(cache=True, nogil=True)
def _count(ids: NDArray[Any], counts: Counts) -> np.int64:
    """Count ids; returns the first that is no row, or -1."""
    for i in ids:
        if i >= len(counts):
            return np.int64(i)
        counts[i] += 1
    return np.int64(-1)
