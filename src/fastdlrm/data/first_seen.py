"""The vocabulary of encoding "reference": the values of all rows, in the order of first sight.

Test rows are in it, as they are in the reference's dictionaries. It is for comparisons with the
reference; encoding "vocabulary" is what a model that is to be judged should be trained on.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts.schema import SparseFeature, Table
from fastdlrm.data.features import reference_keys
from fastdlrm.data.keys import Keys, mix
from fastdlrm.data.staged import StagedRows, sparse_column
from fastdlrm.data.vocabulary import Vocabulary
from fastdlrm.errors import DataError

_ONE = np.uint64(1)
_FIRST_CAPACITY = 1024
_BYTES_PER_KEY = 24
"""Of key, count and two slots."""


def first_seen_vocabulary(
    table: Table, feature: SparseFeature, rows: StagedRows, memory_bytes: int
) -> Vocabulary:
    """Number the values of all rows.

    Args:
        table: Encoding "reference".
        feature: Its one feature, of key "hex".
        rows: Staged rows, read in input order.
        memory_bytes: Most memory to take.

    Raises:
        DataError: The vocabulary does not fit the memory.
    """
    seen = _Seen(table, memory_bytes)
    for block in rows.blocks([sparse_column(feature.name)]):
        seen.add(reference_keys(block.rows.column(0), table.max_rows))
    return Vocabulary(seen.keys, seen.counts, None, rows.num_rows)


class _Seen:
    """Distinct keys in the order of first sight, and how often each came; grows by doubling."""

    def __init__(self, table: Table, memory_bytes: int) -> None:
        self._table = table
        self._memory_bytes = memory_bytes
        self._size = 0
        self._keys = np.empty(_FIRST_CAPACITY, dtype=np.uint64)
        self._counts = np.zeros(_FIRST_CAPACITY, dtype=np.uint64)
        self._slots = np.zeros(2 * _FIRST_CAPACITY, dtype=np.uint32)

    @property
    def keys(self) -> Keys:
        return self._keys[: self._size]

    @property
    def counts(self) -> NDArray[np.uint64]:
        return self._counts[: self._size]

    def add(self, keys: Keys) -> None:
        start = 0
        while True:
            start, self._size = _see(keys, start, self._keys, self._counts, self._slots, self._size)
            if start == len(keys):
                return
            self._grow()

    def _grow(self) -> None:
        capacity = 2 * len(self._keys)
        # The old arrays stand beside the new ones for a moment.
        needed = capacity * _BYTES_PER_KEY * 3 // 2
        if needed > self._memory_bytes:
            raise DataError(
                f"table {self._table.name!r}: a vocabulary of more than {self._size} values needs "
                f"{needed >> 20} MiB, {self._memory_bytes >> 20} MiB are left for it; raise "
                "--memory, lower --workers, or set max_rows, the reference's max-ind-range"
            )
        keys, counts = self._keys, self._counts
        self._keys = np.empty(capacity, dtype=np.uint64)
        self._counts = np.zeros(capacity, dtype=np.uint64)
        self._keys[: self._size] = keys
        self._counts[: self._size] = counts
        self._slots = np.zeros(2 * capacity, dtype=np.uint32)
        _place(self.keys, self._slots)


@njit(cache=True, nogil=True)
def _see(
    values: Keys,
    start: int,
    keys: Keys,
    counts: NDArray[np.uint64],
    slots: NDArray[np.uint32],
    size: int,
) -> tuple[int, int]:
    """Count values[start:] until a new key has no room; a slot holds a key's number + 1, 0 if free.

    Returns:
        Where it stopped, and the number of keys.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(start, len(values)):
        value = values[i]
        slot = mix(value) & mask
        while slots[slot] != 0 and keys[slots[slot] - 1] != value:
            slot = (slot + _ONE) & mask
        if slots[slot] == 0:
            if size == len(keys):
                return i, size
            keys[size] = value
            size += 1
            slots[slot] = size
        counts[slots[slot] - 1] += _ONE
    return len(values), size


@njit(cache=True, nogil=True)
def _place(keys: Keys, slots: NDArray[np.uint32]) -> None:
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        slot = mix(keys[i]) & mask
        while slots[slot] != 0:
            slot = (slot + _ONE) & mask
        slots[slot] = i + 1
