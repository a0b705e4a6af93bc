"""A sparse feature's ids in each split: which rows they are, how many a bag, how they drift."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import TableEncoding
from fastdlrm.contracts.schema import MISSING, SparseFeature
from fastdlrm.data.distribution import Distribution, distribution
from fastdlrm.data.drift import Drift, binned, drift, id_bins
from fastdlrm.data.lookups import Counts, Spectrum, most_frequent, row_counts
from fastdlrm.data.vocabulary import read_values

NUM_TOP = 10
LENGTH_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Shares of the bags for which `BagLengths` gives a bound."""


class BagLengths(msgspec.Struct, frozen=True, kw_only=True):
    """How many ids the bags of a feature hold."""

    num_bags: int
    mean: float
    quantiles: tuple[int, ...]
    """For each of LENGTH_QUANTILES the least length that so large a share do not exceed."""
    maximum: int
    counts: tuple[int, ...]
    """Bags of each length from 0 to the 0.99 quantile."""


class SparseSplit(msgspec.Struct, frozen=True, kw_only=True):
    """A sparse feature in one split."""

    num_ids: int
    """Lookups: one a row, or the ids of all bags."""
    num_distinct: int
    """Different rows of the table, the reserved ones aside."""
    out_of_vocabulary_share: float
    """Share of the ids that are present but have no row of their own; always 0 with encoding
    "hash"."""
    missing_share: float
    """Share of rows without an id: an empty value, or an empty bag."""
    lengths: BagLengths | None
    """Of bags."""
    weights: Distribution | None
    """Of weighted ids; None too where there are no ids."""
    drift: Drift | None
    """From train, over the ids of `fastdlrm.data.drift.id_bins`; None for train itself, and where
    there are no ids."""
    unseen_share: float | None
    """Share of the ids present whose row the feature never looks up in train, so that it learns
    nothing there; None for train itself."""


class TopId(msgspec.Struct, frozen=True, kw_only=True):
    """A frequent id."""

    id: int
    value: str | None
    """Raw value; None with encoding "hash", which keeps none."""
    shares: dict[str, float]
    """By split, its share of the feature's ids."""


class TableScan:
    """Looks at the features of one table, and adds up the lookups of its rows in train.

    Args:
        folder: The dataset.
        encoding: Of the table.
    """

    def __init__(self, folder: Path, encoding: TableEncoding) -> None:
        self._folder = folder
        self._encoding = encoding
        self._first_id = encoding.first_id
        self._train: Counts = np.zeros(encoding.num_embeddings, dtype=np.uint64)

    def look_at(
        self, feature: SparseFeature, splits: Mapping[str, Sequence[pa.RecordBatch]]
    ) -> tuple[dict[str, SparseSplit], tuple[TopId, ...]]:
        """Sum up a feature of the table in each split, and name its most frequent ids.

        Raises:
            DataError: An id is no row of the table, or the vocabulary cannot be read.
        """
        train = self._counts(feature, splits["train"])
        bins = id_bins(train, self._first_id)
        top = most_frequent(train, NUM_TOP, self._first_id)
        found: dict[str, SparseSplit] = {}
        shares: dict[str, NDArray[np.float64]] = {}
        for name, rows in splits.items():
            is_train = name == "train"
            counts = train if is_train else self._counts(feature, rows)
            shares[name] = counts[top] / max(1, int(counts.sum(dtype=np.int64)))
            found[name] = _summed(
                feature,
                rows,
                counts,
                self._first_id,
                drift=None if is_train else drift(binned(train, bins), binned(counts, bins)),
                unseen_share=None if is_train else _unseen(train, counts, self._first_id),
            )
        self._train += train
        return found, self._top(top, shares)

    def spectrum(self) -> Spectrum:
        """Of the lookups in train by the features looked at."""
        return Spectrum.of(self._train)

    def _counts(self, feature: SparseFeature, rows: Sequence[pa.RecordBatch]) -> Counts:
        return feature_counts(feature, rows, self._encoding.num_embeddings)

    def _top(
        self, ids: NDArray[np.int64], shares: Mapping[str, NDArray[np.float64]]
    ) -> tuple[TopId, ...]:
        values: list[str | None] = [None] * len(ids)
        if self._encoding.vocabulary:
            values = list(read_values(self._folder, self._encoding, ids - self._first_id))
        return tuple(
            TopId(
                id=int(i),
                value=value,
                shares={name: float(share[place]) for name, share in shares.items()},
            )
            for place, (i, value) in enumerate(zip(ids, values, strict=True))
        )


def feature_counts(
    feature: SparseFeature, rows: Sequence[pa.RecordBatch], num_embeddings: int
) -> Counts:
    """The number of lookups of each row of a feature's table, shape (num_embeddings,).

    Args:
        feature: Whose ids are counted.
        rows: Encoded rows.
        num_embeddings: Rows of the table.

    Raises:
        DataError: An id is no row of the table.
    """
    columns = [_elements(part.column(feature.name)) for part in rows]
    return row_counts(feature.name, columns, num_embeddings)


def _summed(
    feature: SparseFeature,
    rows: Sequence[pa.RecordBatch],
    counts: Counts,
    first_id: int,
    *,
    drift: Drift | None,
    unseen_share: float | None,
) -> SparseSplit:
    num_ids = int(counts.sum(dtype=np.int64))
    reserved = counts[:first_id].tolist()
    num_unknown, num_missing = reserved if reserved else (0, 0)
    num_present = num_ids - num_missing
    num_rows = sum(part.num_rows for part in rows)
    lengths = weights = None
    if feature.bag:
        bag_counts = _bag_counts([part.column(feature.name) for part in rows])
        lengths, num_missing = _lengths(bag_counts), int(bag_counts[0])
    if feature.is_weighted and num_ids:
        column = [_elements(part.column(f"{feature.name}.weights")) for part in rows]
        weights = distribution(column)
    return SparseSplit(
        num_ids=num_ids,
        num_distinct=int(np.count_nonzero(counts[first_id:])),
        out_of_vocabulary_share=num_unknown / max(1, num_present),
        missing_share=num_missing / num_rows,
        lengths=lengths,
        weights=weights,
        drift=drift,
        unseen_share=unseen_share,
    )


def _unseen(train: Counts, other: Counts, first_id: int) -> float:
    """The share of ids, missing ones aside, whose row has no lookup in train."""
    num_ids, is_unseen = int(other.sum(dtype=np.int64)), train == 0
    if first_id:
        num_ids -= int(other[MISSING])
        is_unseen[MISSING] = False
    return int(other.sum(dtype=np.int64, where=is_unseen)) / max(1, num_ids)


def _elements(column: pa.Array) -> NDArray[Any]:
    """The numbers of a column, of bags those of all bags."""
    values = column.flatten() if pa.types.is_list(column.type) else column
    return values.to_numpy()


def _bag_counts(columns: Sequence[pa.Array]) -> NDArray[np.int64]:
    """Number of bags of each length from 0 on."""
    counts = np.zeros(1, dtype=np.int64)
    for column in columns:
        found = np.bincount(np.diff(column.offsets.to_numpy()))
        longer = max(0, len(found) - len(counts))
        counts = np.pad(counts, (0, longer))
        counts[: len(found)] += found
    return counts


def _lengths(counts: NDArray[np.int64]) -> BagLengths:
    num_bags = int(counts.sum())
    ends = np.cumsum(counts)
    wanted = np.ceil(np.array(LENGTH_QUANTILES) * num_bags)
    quantiles = np.searchsorted(ends, np.maximum(wanted, 1))
    return BagLengths(
        num_bags=num_bags,
        mean=int(counts @ np.arange(len(counts))) / num_bags,
        quantiles=tuple(quantiles.tolist()),
        maximum=int(np.flatnonzero(counts)[-1]),
        counts=tuple(counts[: quantiles[-1] + 1].tolist()),
    )
