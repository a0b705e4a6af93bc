"""Lists of raw ids, and of their weights -> bags of one type.

Missing and empty ids are left out, each with its weight. A list that is null is an empty bag.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.contracts.schema import Key
from fastdlrm.data.values import PARSERS, Flaws, Typed, float_weights, shown, without_missing


@dataclass(frozen=True, slots=True)
class Bags:
    """Ids of each row, weights of the same lengths or None, and by row what is wrong with them."""

    ids: Typed
    weights: Typed | None


def parse_bags(
    ids: pa.ListArray, weights: pa.ListArray | None, key: Key, missing: Sequence[str]
) -> Bags:
    """Parse a bag a row.

    Args:
        ids: Raw ids, shape (n,).
        weights: Their raw weights, shape (n,); None for an unweighted feature.
        key: How ids are parsed.
        missing: Texts that stand for a missing id, besides the empty one.

    Returns:
        Shape (n,), no bag null.
    """
    lengths = _lengths(ids)
    flaws: Flaws = {}
    if weights is not None:
        weight_lengths = _lengths(weights)
        unequal = lengths != weight_lengths
        for row in map(int, np.flatnonzero(unequal)):
            flaws[row] = f"{weight_lengths[row]} weights for {lengths[row]} ids"
        ids, weights = _cleared(ids, unequal), _cleared(weights, unequal)
        lengths = np.where(unequal, 0, lengths)
    rows = np.repeat(np.arange(len(ids)), lengths)
    typed, id_flaws = PARSERS[key](_elements(ids, missing))
    is_kept = _valid(typed)
    all_ids = _regroup(typed, is_kept, rows, len(ids)), _by_row(id_flaws, rows)
    if weights is None:
        return Bags(all_ids, None)
    values, weight_flaws = float_weights(_elements(weights, missing))
    for i in map(int, np.flatnonzero(is_kept & ~_valid(values))):
        weight_flaws.setdefault(i, f"no weight for the id {shown(typed[i].as_py())}")
    flaws |= _by_row(weight_flaws, rows)
    return Bags(all_ids, (_regroup(values, is_kept, rows, len(ids)), flaws))


def _lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    return pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)


def _cleared(lists: pa.ListArray, which: NDArray[np.bool_]) -> pa.ListArray:
    if not which.any():
        return lists
    return pc.if_else(pa.array(which), pa.scalar(None, lists.type), lists)


def _elements(lists: pa.ListArray, missing: Sequence[str]) -> pa.Array:
    elements = lists.flatten()
    if not pa.types.is_string(elements.type):
        return elements
    return without_missing(pc.ascii_trim_whitespace(elements), ("", *missing))


def _regroup(
    elements: pa.Array, is_kept: NDArray[np.bool_], rows: NDArray[np.int64], num_rows: int
) -> pa.ListArray:
    """The kept elements as one list a row."""
    lengths = np.bincount(rows[is_kept], minlength=num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    if not is_kept.all():
        elements = elements.filter(pa.array(is_kept))
    return pa.ListArray.from_arrays(pa.array(offsets), elements)


def _by_row(flaws: Flaws, rows: NDArray[np.int64]) -> Flaws:
    by_row: Flaws = {}
    for element, what in sorted(flaws.items()):
        by_row.setdefault(int(rows[element]), what)
    return by_row


def _valid(values: pa.Array) -> NDArray[np.bool_]:
    return values.is_valid().to_numpy(zero_copy_only=False)
