"""Threads, and how memory is shared out."""

import threading
from collections.abc import Callable

import pytest

from fastdlrm.data.workers import LIBRARY_BYTES, Budget, Threads
from fastdlrm.errors import ConfigError

MIB = 1 << 20
Report = Callable[[int], None]


def nothing(number: int, num_bytes: int) -> None:
    """A report that nobody reads."""


def test_every_task_is_done_and_reports(tmp_path: object) -> None:
    told: list[tuple[int, int]] = []

    def square(number: int, report: Report) -> int:
        report(10 * number)
        return number * number

    done = Threads(3).run(square, range(20), lambda *now: told.append(now), 3)
    assert sorted(done) == [number * number for number in range(20)]
    assert sorted(told) == [(number, 10 * number) for number in range(20)]


def test_a_slow_task_holds_up_no_other() -> None:
    others_done = threading.Event()
    seen = []

    def wait_for_others(number: int, report: Report) -> int:
        if number == 0:
            assert others_done.wait(10)
        return number

    for number in Threads(2).run(wait_for_others, range(10), nothing, 2):
        seen.append(number)
        if len(seen) == 9:
            others_done.set()
    assert seen[-1] == 0


def test_no_more_at_once_than_asked_for() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def count(number: int, report: Report) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.005)
        with lock:
            running[0] -= 1

    list(Threads(8).run(count, range(30), nothing, 2))
    assert most[0] == 2


def test_an_error_stops_the_others_where_they_report() -> None:
    begun = threading.Event()
    rounds = []

    def work(number: int, report: Report) -> None:
        if number == 0:
            assert begun.wait(10)
            raise ValueError("task 0")
        for _ in range(10_000):
            rounds.append(number)
            begun.set()
            threading.Event().wait(0.001)
            report(1)

    with pytest.raises(ValueError, match="task 0"):
        list(Threads(2).run(work, range(100), nothing, 2))
    assert len(rounds) < 5_000
    assert max(rounds) < 10  # the thread of task 0 may have begun another meanwhile


def test_memory_is_shared_out() -> None:
    budget = Budget.of(LIBRARY_BYTES + 900 * MIB, Threads(4))
    assert budget.split(100 * MIB) == (4, 225 * MIB)
    assert budget.split(400 * MIB) == (2, 450 * MIB)
    assert budget.split(901 * MIB) == (1, 900 * MIB)


class TwoProcesses(Threads):
    """As a cluster has them."""

    num_processes = 2


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--memory: 767 MiB; 768 MiB is the least for 1 process$"
    ):
        Budget.of(767 * MIB, Threads(1))
    with pytest.raises(ConfigError, match=r"767 MiB; 1536 MiB is the least for 2 processes$"):
        Budget.of(767 * MIB, TwoProcesses(1))
    assert Budget.of(1536 * MIB, TwoProcesses(1)).spare_bytes == 768 * MIB - LIBRARY_BYTES
