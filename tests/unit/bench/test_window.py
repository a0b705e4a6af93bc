import numpy as np
import pytest

from fastdlrm.bench.window import round_s, window
from fastdlrm.contracts.bench_result import Effort

MS = 1_000_000


def stamps(*milliseconds: float):
    return np.array([int(x * MS) for x in milliseconds], np.int64)


def test_calls_count_that_end_while_all_run():
    # b starts at 3; the first calls from then on end at 4 (a) and 6 (b), so it opens at 6
    a, b = stamps(0, 2, 4, 5, 7, 9, 12), stamps(3, 6, 8, 11)
    found = window([a, b], 10 * MS)
    assert found.seconds == pytest.approx(0.004)
    assert [list(times) for times in found.times_ms] == [[2, 2], [2]]  # 5-7, 7-9; 6-8


def test_a_call_that_began_before_all_ran_does_not_count():
    # a's call 0-8 began alone; its next one is the first of all, and ends at 9
    a, b = stamps(0, 8, 9, 11), stamps(2, 3, 5, 7, 10, 12)
    found = window([a, b], 11 * MS)
    assert found.seconds == pytest.approx(0.002)
    assert [list(times) for times in found.times_ms] == [[2], [3]]  # 9-11; 7-10


def test_one_process_loses_its_first_call_alone():
    found = window([stamps(0, 5, 7, 10, 14)], 12 * MS)
    assert found.seconds == pytest.approx(0.007)
    assert [list(times) for times in found.times_ms] == [[2, 3]]


@pytest.mark.parametrize(
    "late",
    [
        stamps(12, 14),  # after the end: a has no call left from then on
        stamps(9, 13),  # its first call ends after the window has closed
    ],
)
def test_it_is_empty_where_they_did_not_run_together(late):
    found = window([stamps(0, 4, 8, 11), late], 10 * MS)
    assert found.seconds == 0
    assert [len(times) for times in found.times_ms] == [0, 0]


def test_how_long_a_round_is():
    # 3 s in 5 rounds are 0.6 s each; 20 of 100 samples are asked for, 400 of 2000 allowed; before
    # them each copy makes its first call, which two calls' time is left for
    effort = Effort(seconds=3.0, num_rounds=5, min_samples=100)
    assert round_s(0.01, effort) == pytest.approx(0.6 + 0.02)
    assert round_s(0.0001, effort) == pytest.approx(400 * 0.0001 + 0.0002)
    assert round_s(0.1, effort) == pytest.approx(20 * 0.1 + 0.2)
    assert round_s(0.5, effort) == pytest.approx(5 * 0.6 + 1.0)  # patience ends
    assert round_s(4.0, effort) == pytest.approx(2 * 4.0 + 8.0)  # yet a call must end in it
