"""The two hash tables of `prepare`: key -> row of an embedding table, and key -> count.

Open addressing with linear probing from the mixed key; the capacity is a power of two.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts.schema import FIRST_ID
from fastdlrm.data.keys import Keys, mix

_FIRST_ID = np.uint32(FIRST_ID)
_ONE = np.uint64(1)
_TOP = 2**64
_NO_WEIGHTS = np.empty(0, dtype=np.uint64)


class KeyTable:
    """The ids of a vocabulary; safe to use from several threads.

    A slot holds an id, 0 when free, and the key is looked up in the vocabulary itself. Frequent
    keys stand first there, so that slots and the keys that matter fit the cache.

    Attributes:
        keys: The vocabulary, shape (n,).
        slots: Shape (num_slots(n),), uint32.
    """

    keys: Keys
    slots: NDArray[np.uint32]

    def __init__(self, keys: Keys) -> None:
        """Build the table.

        Args:
            keys: The vocabulary, distinct, shape (n,); keys[i] gets id i + FIRST_ID.
        """
        self.keys = keys
        self.slots = np.zeros(self.num_slots(len(keys)), dtype=np.uint32)
        _insert(keys, self.slots)

    @classmethod
    def over(cls, keys: Keys, slots: NDArray[np.uint32]) -> "KeyTable":
        """A table that was built before, without building it again.

        Args:
            keys: The vocabulary, shape (n,).
            slots: Of a table of these keys, shape (num_slots(n),).
        """
        table = cls.__new__(cls)
        table.keys, table.slots = keys, slots
        return table

    @staticmethod
    def num_slots(num_keys: int) -> int:
        """Slots of a table of so many keys."""
        return _capacity(2 * num_keys)

    @staticmethod
    def bytes_for(num_keys: int) -> int:
        """Memory of a table of so many keys, the vocabulary's keys included."""
        return 4 * KeyTable.num_slots(num_keys) + 8 * num_keys

    def write_ids(self, keys: Keys, out: NDArray[np.unsignedinteger]) -> None:
        """Write the id of each key, OUT_OF_VOCABULARY where it has none.

        Args:
            keys: Shape (n,).
            out: An unsigned type that holds every id, shape (n,).
        """
        look_up(keys, self.keys, self.slots, out)


class KeyCounter:
    """Occurrences of each key of a stream that may hold more distinct keys than memory.

    One pass over the stream counts the keys whose mixed value lies in [low, high). When the table
    is full, `high` is halved towards `low` and the keys behind it are dropped, for a later pass.

        counter = KeyCounter(max_bytes)
        while not counter.is_done:
            for keys in stream: counter.add(keys)
            found = counter.finish_pass()
    """

    def __init__(self, max_bytes: int) -> None:
        """Begin with an empty table.

        Args:
            max_bytes: Most memory the table takes, while it grows too.
        """
        # A table of capacity c takes 16 c bytes, and half as much again while it grows into c.
        self._max_capacity = max(1024, _capacity(max_bytes // 24 + 1) // 2)
        self._low, self._high = 0, _TOP
        self._table, self._size = _empty_table(1024), 0

    @property
    def is_done(self) -> bool:
        """Whether every key was counted."""
        return self._low == _TOP

    @property
    def span(self) -> tuple[int, int]:
        """Least and largest mixed value that this pass counts; only the largest may still fall."""
        return self._low, self._high - 1

    def add(self, keys: Keys, weights: NDArray[np.uint64] = _NO_WEIGHTS) -> None:
        """Count the keys of this pass's range.

        Args:
            keys: Shape (n,).
            weights: Occurrences that each stands for, shape (n,); one each where none are given.
        """
        start = 0
        while True:
            low, last = np.uint64(self._low), np.uint64(self._high - 1)
            start, self._size = _count(keys, weights, start, low, last, self._table, self._size)
            if start == len(keys):
                return
            self._make_room()

    def finish_pass(self) -> tuple[Keys, NDArray[np.uint64]]:
        """Keys and counts of the pass, unordered; the next pass takes up where this one ended."""
        used = self._table[self._table[:, 1] > 0]
        width = self._high - self._low
        self._low, self._high = self._high, min(_TOP, self._high + width)
        self._table, self._size = _empty_table(1024), 0
        return used[:, 0].copy(), used[:, 1].copy()

    def _make_room(self) -> None:
        capacity = len(self._table)
        if capacity < self._max_capacity:
            capacity *= 2
        else:
            self._high = (self._low + self._high) // 2
        table = _empty_table(capacity)
        self._size = _move(self._table, np.uint64(self._high - 1), table)
        self._table = table


def _empty_table(capacity: int) -> Keys:
    """A (key, count) a slot; count 0 is free."""
    return np.zeros((capacity, 2), dtype=np.uint64)


def _capacity(at_least: int) -> int:
    """The smallest power of two that is at least so large."""
    return 1 << max(0, at_least - 1).bit_length()


@njit(cache=True, nogil=True)
def _insert(keys: Keys, slots: NDArray[np.uint32]) -> None:
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        slot = mix(keys[i]) & mask
        while slots[slot] != 0:
            slot = (slot + _ONE) & mask
        slots[slot] = np.uint32(i) + _FIRST_ID


@njit(cache=True, nogil=True)
def look_up(keys: Keys, vocabulary: Keys, slots: NDArray[np.uint32], out: NDArray[Any]) -> None:
    """`KeyTable.write_ids` of a table's vocabulary and slots; for use inside compiled code."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        key = keys[i]
        slot = mix(key) & mask
        row = slots[slot]
        while row != 0 and vocabulary[row - _FIRST_ID] != key:
            slot = (slot + _ONE) & mask
            row = slots[slot]
        out[i] = row


@njit(cache=True, nogil=True)
def _count(
    keys: Keys,
    weights: NDArray[np.uint64],
    start: int,
    low: np.uint64,
    last: np.uint64,
    table: Keys,
    size: int,
) -> tuple[int, int]:
    """Count keys[start:] until the table is 5/8 full.

    Returns:
        Where it stopped, and the distinct keys in the table.
    """
    mask = np.uint64(len(table) - 1)
    limit = len(table) // 8 * 5
    is_weighted = len(weights) > 0
    for i in range(start, len(keys)):
        key = keys[i]
        mixed = mix(key)
        if mixed < low or mixed > last:
            continue
        slot = mixed & mask
        while table[slot, 1] != 0 and table[slot, 0] != key:
            slot = (slot + _ONE) & mask
        if table[slot, 1] == 0:
            if size >= limit:
                return i, size
            table[slot, 0] = key
            size += 1
        table[slot, 1] += weights[i] if is_weighted else _ONE
    return len(keys), size


@njit(cache=True, nogil=True)
def _move(table: Keys, last: np.uint64, into: Keys) -> int:
    """Copy the keys whose mixed value is at most `last` to an empty table; returns how many."""
    mask = np.uint64(len(into) - 1)
    size = 0
    for i in range(len(table)):
        key = table[i, 0]
        mixed = mix(key)
        if table[i, 1] == 0 or mixed > last:
            continue
        slot = mixed & mask
        while into[slot, 1] != 0:
            slot = (slot + _ONE) & mask
        into[slot, 0] = key
        into[slot, 1] = table[i, 1]
        size += 1
    return size
