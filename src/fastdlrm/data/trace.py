"""Traces of ids: their stack-distance profile, and synthetic traces drawn from one.

The stack distance of an access is the depth of its id in a stack of all ids, most recently used on
top: 1 for the id just used, 0 for an id never used before. A cache of C ids under LRU misses just
the distances 0 and above C, so a trace with the distances of another has its miss rates.

Invariants: profile and generator keep their state between calls, so that a trace cut into pieces
gives what the whole gives; a generated trace is a function of profile, rule and seed.

Source: Naumov et al. 2019, arXiv:1906.00091, algorithms 1 and 2; Hassan et al. 2007, AINAW.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.data import keys
from fastdlrm.data.recency import (
    Indices,
    RecencyStack,
    copy_to,
    depth_at,
    index_type,
    new_stack,
    push,
    slot_at,
)
from fastdlrm.errors import DataError

Ids = NDArray[np.uint64]
Rule = Literal["paper", "padded", "deferred"]
"""What becomes of a distance deeper than the number of ids used so far.

paper: it is not drawn; the smaller distances take its share.
padded: as paper, but new ids are more frequent until all were used, and then there are none.
deferred: it changes places with the next new id that is drawn, so that no distance is lost.
"""

_FIRST_CAPACITY = 1 << 10
_COUNT_AT_ONCE = 1 << 16
_DRAW_AT_ONCE = 1 << 16
_PADDED, _DEFERRED = map(get_args(Rule).index, ("padded", "deferred"))
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Stack distances of a trace.

    Attributes:
        ids: Distinct ids in the order of their first use, shape (n,).
        distances: Those that occur, ascending from 0, shape (m,).
        cumulative: Share of accesses with at most each distance, shape (m,); the last is 1.
    """

    ids: Ids
    distances: NDArray[np.int64]
    cumulative: NDArray[np.float64]

    @property
    def mean_distance(self) -> float:
        """Mean stack distance, new ids counted as 0."""
        return float(np.diff(self.cumulative, prepend=0.0) @ self.distances)

    def padded(self) -> "Profile":
        """The profile with the paper's adjustment: more accesses to new ids.

        Of L accesses whose largest distance is c, ceil(L / c) are added at distance 0. The number L
        is read off the share of distance 0, for each of the n ids is new once.
        """
        deepest = int(self.distances[-1])
        if deepest == 0:
            return self
        num_accesses = round(len(self.ids) / float(self.cumulative[0]))
        padding = -(-num_accesses // deepest)
        share = (self.cumulative * num_accesses + padding) / (num_accesses + padding)
        return Profile(ids=self.ids, distances=self.distances, cumulative=share)


class Profiler:
    """Takes a trace piece by piece; memory grows with its distinct ids, about 60 bytes each."""

    def __init__(self) -> None:
        self._num_ids = 0
        self._ids = np.empty(0, np.uint64)
        self._counts = np.zeros(1, np.int64)
        self._stack = new_stack(0)
        self._grow(_FIRST_CAPACITY)

    def add(self, ids: Ids) -> None:
        """Count the next accesses of the trace."""
        for start in range(0, len(ids), _COUNT_AT_ONCE):
            piece = ids[start : start + _COUNT_AT_ONCE]
            entries = np.empty(len(piece), dtype=np.int64)
            done = 0
            while True:
                known, self._num_ids = _find(
                    piece, done, self._ids, self._num_ids, self._slots, entries
                )
                _count(entries[done:known], self._counts, self._stack)
                done = known
                if done == len(piece):
                    break
                self._grow(2 * len(self._ids))

    def profile(self, where: str = "trace") -> Profile:
        """The profile of all accesses so far.

        Args:
            where: The trace, for an error message.

        Raises:
            DataError: There was none.
        """
        if not self._num_ids:
            raise DataError(f"{where}: no id in it; a profile needs at least one")
        distances = np.flatnonzero(self._counts)
        counts = np.cumsum(self._counts[distances])
        ids = self._ids[: self._num_ids].copy()
        return Profile(ids=ids, distances=distances, cumulative=counts / counts[-1])

    def _grow(self, capacity: int) -> None:
        """Make room for so many distinct ids."""
        self._ids = np.concatenate([self._ids, np.empty(capacity - len(self._ids), np.uint64)])
        more = np.zeros(capacity + 1 - len(self._counts), np.int64)
        self._counts = np.concatenate([self._counts, more])
        self._slots = np.zeros(2 * capacity, index_type(capacity))
        _enter(self._ids[: self._num_ids], self._slots)
        stack, self._stack = self._stack, new_stack(capacity)
        copy_to(stack, self._stack)


class _State(NamedTuple):
    """Where a generator stands.

    Attributes:
        counts: New ids so far; place in the profile of the deepest distance that they allow;
            deferred distances taken up again; deferred distances. Shape (4,).
        deferred: Those distances, first in first out, shape (n,).
    """

    counts: NDArray[np.int64]
    deferred: Indices


class TraceGenerator:
    """Draws a trace access by access; memory is about 50 bytes an id of the profile."""

    def __init__(self, profile: Profile, seed: int, rule: Rule = "deferred") -> None:
        """Begin a trace: no id was used yet.

        Args:
            profile: Of the trace to imitate.
            seed: 0 .. 2**64 - 1.
            rule: See `Rule`.
        """
        self._profile = profile.padded() if rule == "padded" else profile
        self._rule = get_args(Rule).index(rule)
        self._stream = keys.stream(seed, "trace")
        self._stack = new_stack(len(profile.ids))
        _push_all(self._stack)
        self._guide = _guide(self._profile.cumulative)
        self._num_drawn = 0
        deferred = np.empty(len(profile.ids), dtype=index_type(len(profile.ids)))
        self._state = _State(counts=np.zeros(4, dtype=np.int64), deferred=deferred)

    def draw(self, count: int) -> Ids:
        """The next accesses of the trace, shape (count,)."""
        out = np.empty(count, dtype=np.uint64)
        for start in range(0, count, _DRAW_AT_ONCE):
            piece = out[start : start + _DRAW_AT_ONCE]
            first = self._num_drawn
            self._num_drawn += len(piece)
            units = keys.uniforms(self._stream, first, self._num_drawn)
            table = (self._profile.distances, self._profile.cumulative, self._guide)
            _generate(units, self._profile.ids, table, self._rule, self._stack, self._state, piece)
        return out


@njit(cache=True, nogil=True)
def _find(
    trace: Ids,
    start: int,
    ids: Ids,
    num_ids: int,
    slots: Indices,
    entries: Indices,
) -> tuple[int, int]:
    """Find the entries of trace[start:], making new ones until they have no room.

    Args:
        trace: Accesses.
        start: First of them to find.
        ids: Distinct ids by entry, shape (capacity,).
        num_ids: Entries there are.
        slots: Hash table of a power of two, entry + 1 or 0 a slot.
        entries: Output, as long as `trace`.

    Returns:
        Where it stopped, and the entries there are.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(start, len(trace)):
        slot = keys.mix(trace[i]) & mask
        while slots[slot] != 0 and ids[slots[slot] - 1] != trace[i]:
            slot = (slot + _ONE) & mask
        if slots[slot] == 0:
            if num_ids == len(ids):
                return i, num_ids
            ids[num_ids] = trace[i]
            num_ids += 1
            slots[slot] = num_ids
        entries[i] = slots[slot] - 1
    return len(trace), num_ids


@njit(cache=True, nogil=True)
def _enter(ids: Ids, slots: Indices) -> None:
    """Enter distinct ids into an empty hash table."""
    mask = np.uint64(len(slots) - 1)
    for entry in range(len(ids)):
        slot = keys.mix(ids[entry]) & mask
        while slots[slot] != 0:
            slot = (slot + _ONE) & mask
        slots[slot] = entry + 1


@njit(cache=True, nogil=True)
def _count(entries: Indices, counts: NDArray[np.int64], stack: RecencyStack) -> None:
    """Count the distances of accesses."""
    for entry in entries:
        slot = stack.place[entry]
        counts[depth_at(stack, slot)] += 1
        push(stack, entry, slot)


@njit(cache=True, nogil=True)
def _push_all(stack: RecencyStack) -> None:
    """Put all entries on the stack, entry 0 at its bottom at last."""
    for entry in range(len(stack.place)):
        push(stack, entry, -1)


@njit(cache=True, nogil=True)
def _guide(cumulative: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where to look for a share of k / m to (k + 1) / m: from guide[k] to guide[k + 1]."""
    m = len(cumulative)
    guide = np.empty(m + 1, dtype=np.int64)
    place = 0
    for k in range(m + 1):
        while place < m - 1 and cumulative[place] < k / m:
            place += 1
        guide[k] = place
    return guide


@njit(cache=True, nogil=True)
def _place_of(share: float, cumulative: NDArray[np.float64], guide: NDArray[np.int64]) -> int:
    """The first place whose cumulative share is at least `share`."""
    m = len(cumulative)
    k = int(share * m)
    low, high = guide[max(k - 1, 0)], guide[min(k + 2, m)]  # one cell more: k may be rounded
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] < share:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _generate(
    units: NDArray[np.float64],
    ids: Ids,
    table: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]],
    rule: int,
    stack: RecencyStack,
    state: _State,
    out: Ids,
) -> None:
    """Draw accesses.

    Args:
        units: Uniform in [0, 1), one an access.
        ids: By entry.
        table: Distances, cumulative shares and guide.
        rule: Place in `Rule`.
        stack: Of all entries; those never used are at the bottom.
        state: Changed.
        out: Output, as long as `units`.
    """
    distances, cumulative, guide = table
    num_new, reach, head, tail = state.counts
    for i in range(len(units)):
        share = units[i]
        if rule != _DEFERRED and num_new < distances[-1]:
            while distances[reach + 1] <= num_new:
                reach += 1
            share *= cumulative[reach]
        elif rule == _PADDED and num_new >= len(ids):
            share = cumulative[0] + share * (1.0 - cumulative[0])
        distance = distances[_place_of(share, cumulative, guide)]
        if distance > num_new:
            state.deferred[tail] = distance
            tail += 1
            distance = 0
        elif distance == 0 and head < tail and state.deferred[head] <= num_new:
            distance = state.deferred[head]
            head += 1
        if distance == 0:
            distance = len(ids)
            num_new += 1
        slot = slot_at(stack, distance)
        entry = stack.owner[slot]
        push(stack, entry, slot)
        out[i] = ids[entry]
    state.counts[:] = (num_new, reach, head, tail)
