"""How many copies of a model a machine takes: the bend of a curve, and where it meets an SLA."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MIN_GAIN = 0.1
"""Of a copy alone: what an added copy brings, at least, before the curve counts as bent."""
MAX_SPREAD = 2.0
"""Times the spread of the fewest copies: from which on the tail counts as broken away."""


class Point(NamedTuple):
    """Some copies at once.

    Attributes:
        copies: How many.
        samples_per_s: Of all together.
        p50_ms: Of a call.
        p99_ms: None where there are too few samples.
    """

    copies: int
    samples_per_s: float
    p50_ms: float
    p99_ms: float | None


class Knee(NamedTuple):
    """Where a curve bends.

    Attributes:
        copies: The last before the bend.
        reason: What the next ones do, in words.
    """

    copies: int
    reason: str


def knee(points: Sequence[Point]) -> Knee | None:
    """The number of copies after which more bring little, or make the slowest calls slow.

    From the fewest copies on, it is the last number before the first at which either

    - each added copy brings less than 10 % of the samples a second of one of the fewest copies, or
    - the spread, p99 over the median, is more than twice the spread of the fewest copies.

    Args:
        points: At least one, ascending; a p99 that is missing is not looked at.

    Returns:
        None where the curve does not bend as far as it was measured.
    """
    first = points[0]
    alone = first.samples_per_s / first.copies
    calm = _spread(first)
    for before, after in pairwise(points):
        added = (after.samples_per_s - before.samples_per_s) / (after.copies - before.copies)
        if added < MIN_GAIN * alone:
            return Knee(before.copies, f"an added copy brings {added / alone:.0%} of one alone")
        spread = _spread(after)
        if calm is not None and spread is not None and spread > MAX_SPREAD * calm:
            return Knee(
                before.copies,
                f"with {after.copies} p99 is {spread:.1f} times the median, {calm:.1f} before",
            )
    return None


def copies_at_sla(points: Sequence[Point], sla_ms: float) -> int | None:
    """The most copies with p99 <= SLA; None where there are none."""
    met = [x.copies for x in points if x.p99_ms is not None and x.p99_ms <= sla_ms]
    return max(met, default=None)


def _spread(point: Point) -> float | None:
    return None if point.p99_ms is None else point.p99_ms / point.p50_ms
