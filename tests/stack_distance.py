"""The paper's trace profiler and generator on plain lists, and a cache: slow, one access a time."""

import math
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class SlowProfile(NamedTuple):
    ids: list[int]
    counts: dict[int, int]
    """Accesses by distance."""


def profile(trace: Sequence[int]) -> SlowProfile:
    """Depth from the top of a list of all ids, most recently used last."""
    stack: list[int] = []
    ids: list[int] = []
    counts: Counter[int] = Counter()
    for identifier in trace:
        if identifier in stack:
            place = stack.index(identifier)
            counts[len(stack) - place] += 1
            del stack[place]
        else:
            counts[0] += 1
            ids.append(identifier)
        stack.append(identifier)
    return SlowProfile(ids, dict(counts))


def padded(found: SlowProfile) -> SlowProfile:
    """As many more new ids as an id has accesses, on average over the deepest distance."""
    num_accesses, deepest = sum(found.counts.values()), max(found.counts)
    extra = math.ceil(Fraction(num_accesses, deepest)) if deepest else 0
    return SlowProfile(found.ids, found.counts | {0: found.counts[0] + extra})


def cumulative(found: SlowProfile) -> tuple[list[int], list[float]]:
    """Distances, and the share of accesses with at most each."""
    distances, total, so_far = sorted(found.counts), sum(found.counts.values()), 0
    shares = []
    for distance in distances:
        so_far += found.counts[distance]
        shares.append(so_far / total)
    return distances, shares


def generate(found: SlowProfile, units: Sequence[float], rule: str) -> list[int]:
    """A trace, an access for each uniform number."""
    queue = list(found.ids)  # most recently used last
    distances, shares = cumulative(padded(found) if rule == "padded" else found)
    num_new, waiting, trace = 0, [], []
    for unit in units:
        if rule != "deferred" and num_new < distances[-1]:
            unit *= shares[bisect_right(distances, num_new) - 1]
        elif rule == "padded" and num_new >= len(queue):
            unit = shares[0] + unit * (1.0 - shares[0])
        distance = next(d for d, share in zip(distances, shares, strict=True) if unit <= share)
        if distance > num_new:
            waiting.append(distance)
            distance = 0
        elif distance == 0 and waiting and waiting[0] <= num_new:
            distance = waiting.pop(0)
        num_new += distance == 0
        trace.append(queue.pop(0 if distance == 0 else len(queue) - distance))
        queue.append(trace[-1])
    return trace


def lru_miss_rate(trace: Sequence[int], num_ids: int) -> float:
    """Share of accesses missed by a cache of so many ids that evicts the least recently used."""
    cache: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for identifier in trace:
        if identifier in cache:
            cache.move_to_end(identifier)
        else:
            misses += 1
            cache[identifier] = None
            if len(cache) > num_ids:
                cache.popitem(last=False)
    return misses / len(trace)
