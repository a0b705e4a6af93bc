"""The best rung of a ladder by going up or down from where one stands, as DeepRecSched does.

Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772, section IV.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple


class Climb(NamedTuple):
    """Where a climb went.

    Attributes:
        best: The rung where it stopped.
        visited: Rungs in the order in which they were tried.
    """

    best: int
    visited: tuple[int, ...]


def static_rows(max_query: int, num_workers: int) -> int:
    """Largest part of a query where the largest query is dealt out to all workers.

    Args:
        max_query: Samples of the largest query.
        num_workers: Workers.
    """
    return ceil(max_query / num_workers)


def hill_climb(ladder: Sequence[int], start: int, value: Callable[[int], float]) -> Climb:
    """Go up the ladder while the value rises; if its first step does not, go down instead.

    It takes the value to have one peak: on the way over a dip it stops at the first fall.

    Args:
        ladder: Rungs, ascending.
        start: One of them.
        value: Of a rung; more is better. Asked once a rung.
    """
    place = ladder.index(start)
    best, visited = value(start), [start]
    for step in (1, -1):
        while 0 <= place + step < len(ladder):
            found = value(ladder[place + step])
            visited.append(ladder[place + step])
            if found <= best:
                break
            best, place = found, place + step
        if ladder[place] != start:
            break
    return Climb(ladder[place], tuple(visited))
