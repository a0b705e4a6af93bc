"""The calls of several processes that fell into a time in which all of them ran.

All stamps are of one clock (`time.perf_counter_ns`, which Linux counts for the whole machine).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdlrm.bench.measure import MAX_SAMPLES, PATIENCE
from fastdlrm.contracts.bench_result import Effort

Stamps = NDArray[np.int64]
"""When a process began, and when each of its calls ended, in ns: one call follows the other."""


class Window(NamedTuple):
    """What all did while all ran.

    Attributes:
        seconds: It lasted.
        times_ms: Of the calls that ended in it, by process.
    """

    seconds: float
    times_ms: list[NDArray[np.float64]]


def window(stamps: Sequence[Stamps], stop_ns: int) -> Window:
    """The calls that ended while all ran, each process having made a whole call among all before.

    Closed at a fixed time, not at a call's end, so that slow calls count as often as they came.

    Args:
        stamps: Of each process; each went on up to the end of the call in which `stop_ns` fell.
        stop_ns: When the window closes.

    Returns:
        Of 0 seconds where they did not all run before it closed.
    """
    all_run = max(int(each[0]) for each in stamps)
    firsts = [int(np.searchsorted(each, all_run)) + 1 for each in stamps]
    if any(first >= len(each) for first, each in zip(firsts, stamps, strict=True)):
        return Window(0.0, [np.empty(0) for _ in stamps])
    opens = max(int(each[first]) for first, each in zip(firsts, stamps, strict=True))
    found = []
    for each in stamps:
        ends = each[1:]
        found.append(np.diff(each)[(ends > opens) & (ends <= stop_ns)] / 1e6)
    return Window(max(stop_ns - opens, 0) / 1e9, found)


def round_s(slowest_s: float, effort: Effort) -> float:
    """How long a round is to be.

    Args:
        slowest_s: A call of the slowest process, on average.
        effort: Seconds of all rounds; more, up to `PATIENCE` times, where a process would make too
            few calls in them, fewer where it would make more than `MAX_SAMPLES`.
    """
    budget = effort.seconds / effort.num_rounds
    fewest, most = (
        number / effort.num_rounds * slowest_s for number in (effort.min_samples, MAX_SAMPLES)
    )
    wanted = max(min(budget, most), min(fewest, PATIENCE * budget))
    return max(wanted, 2 * slowest_s) + 2 * slowest_s  # 2: until each has made its first call
