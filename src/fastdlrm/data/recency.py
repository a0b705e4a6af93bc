"""A recency stack: entries in the order of their last use, each found by its depth in O(log n).

Each use takes the next slot of a line of slots, and the slot of the entry's last use is freed, so
that slots in use, read from the end of the line, are the stack from its top. Depth is a count of
used slots: a bit a slot, and a Fenwick tree over blocks of 512 slots, which for 10 M entries take
2.5 MB and 160 KB, so that a search stays in the cache. When the line is used up, its used slots are
moved to its beginning.

Invariants: an entry holds one slot at most; at least half of the slots are free after a move.

Source: Bennett and Kruskal 1975 (stack distances by a tree of marks); Fenwick 1994.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

BLOCK = 512
"""Slots a block: the bits of one cache line."""
_WORDS = BLOCK // 64
_ONE = np.uint64(1)

Indices = NDArray[np.signedinteger[Any]]


class RecencyStack(NamedTuple):
    """The line of slots.

    Attributes:
        owner: Entry that took each slot last, shape (capacity,).
        words: A bit a slot, set where it is in use, shape (capacity / 64,).
        tree: Fenwick tree over used slots a block, from 1, shape (capacity / BLOCK + 1,).
        place: Slot of each entry, -1 without one, shape (n,).
        state: Next slot, slots in use; shape (2,).
    """

    owner: Indices
    words: NDArray[np.uint64]
    tree: Indices
    place: Indices
    state: NDArray[np.int64]


def index_type(num_entries: int) -> type[np.signedinteger[Any]]:
    """The smaller type that holds every entry and slot."""
    return np.int32 if 2 * num_entries + BLOCK < 2**31 else np.int64


def new_stack(num_entries: int) -> RecencyStack:
    """An empty stack for entries 0 .. num_entries - 1; about 13 bytes an entry, 25 from 2**30."""
    num_blocks = -(-max(1, 2 * num_entries) // BLOCK)
    kind = index_type(num_entries)
    return RecencyStack(
        owner=np.empty(num_blocks * BLOCK, dtype=kind),
        words=np.zeros(num_blocks * _WORDS, dtype=np.uint64),
        tree=np.zeros(num_blocks + 1, dtype=kind),
        place=np.full(num_entries, -1, dtype=kind),
        state=np.zeros(2, dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def push(stack: RecencyStack, entry: int, slot: int) -> None:
    """Put an entry on top, taking it from its slot; -1 for an entry that has none."""
    if slot >= 0:
        _mark(stack, slot, -1)
    if stack.state[0] == len(stack.owner):
        stack.place[entry] = -1
        _move_down(stack)
    top = stack.state[0]
    stack.state[0] = top + 1
    stack.owner[top] = entry
    stack.place[entry] = top
    _mark(stack, top, 1)


@njit(cache=True, nogil=True)
def depth_at(stack: RecencyStack, slot: int) -> int:
    """Depth from the top of the entry in a slot, 1 for the top itself; 0 for slot -1."""
    if slot < 0:
        return 0
    below = 0
    block = slot // BLOCK
    while block > 0:
        below += stack.tree[block]
        block &= block - 1
    for word in range(slot // BLOCK * _WORDS, slot // 64):
        below += _ones(stack.words[word])
    below += _ones(stack.words[slot // 64] & ((_ONE << np.uint64(slot % 64)) - _ONE))
    return stack.state[1] - below


@njit(cache=True, nogil=True)
def slot_at(stack: RecencyStack, depth: int) -> int:
    """The slot of the entry at a depth, 1 .. entries in the stack."""
    rest = stack.state[1] - depth
    num_blocks = len(stack.tree) - 1
    block, step = 0, 1
    while 2 * step <= num_blocks:
        step *= 2
    while step > 0:
        if block + step <= num_blocks and stack.tree[block + step] <= rest:
            block += step
            rest -= stack.tree[block]
        step //= 2
    word = block * _WORDS
    count = _ones(stack.words[word])
    while count <= rest:
        rest -= count
        word += 1
        count = _ones(stack.words[word])
    bits = stack.words[word]
    for _ in range(rest):
        bits &= bits - _ONE
    lowest = bits & (~bits + _ONE)
    return 64 * word + _ones(lowest - _ONE)


@njit(cache=True, nogil=True)
def copy_to(stack: RecencyStack, into: RecencyStack) -> None:
    """Put all entries, in their order, on an empty stack."""
    for slot in range(stack.state[0]):
        if stack.place[stack.owner[slot]] == slot:
            push(into, stack.owner[slot], -1)


@njit(cache=True, nogil=True)
def _mark(stack: RecencyStack, slot: int, change: int) -> None:
    """Count a slot in (1) or out (-1)."""
    stack.words[slot // 64] ^= _ONE << np.uint64(slot % 64)
    stack.state[1] += change
    block = slot // BLOCK + 1
    while block < len(stack.tree):
        stack.tree[block] += change
        block += block & -block


@njit(cache=True, nogil=True)
def _move_down(stack: RecencyStack) -> None:
    """Move used slots to the beginning of the line; their order stays."""
    to = 0
    for slot in range(stack.state[0]):
        entry = stack.owner[slot]
        if stack.place[entry] == slot:
            stack.owner[to] = entry
            stack.place[entry] = to
            to += 1
    stack.state[0] = to
    stack.words[:] = 0
    stack.words[: to // 64] = ~np.uint64(0)
    if to % 64:
        stack.words[to // 64] = (_ONE << np.uint64(to % 64)) - _ONE
    stack.tree[:] = 0
    for block in range(1, len(stack.tree)):
        stack.tree[block] += min(max(to - (block - 1) * BLOCK, 0), BLOCK)
        parent = block + (block & -block)
        if parent < len(stack.tree):
            stack.tree[parent] += stack.tree[block]


@njit(cache=True, nogil=True)
def _ones(word: np.uint64) -> int:
    """Bits that are set; compilers know this sum as one instruction."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return int((word * np.uint64(0x0101010101010101)) >> np.uint64(56))
