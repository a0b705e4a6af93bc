import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdlrm.bench.copies import Copies, Job, closed_loop
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.shared_tables import SharedTables
from fastdlrm.errors import BenchError, ConfigError

CORES = sorted(os.sched_getaffinity(0))


def load(*sizes: str) -> BenchModel:
    """Tables of a thousandth of their rows, or of the sizes that overrides say."""
    options = {"rows_scale": 1.0 if sizes else 0.001, "device": "cpu", "overrides": sizes}
    return BenchModel.load("rmc1-paper", **options)


def job(number: int, shared: SharedTables | None = None, model: BenchModel | None = None) -> Job:
    return Job(
        model=model or load(),
        number=number,
        core=CORES[-1 - number % len(CORES)],
        batch_size=4,
        num_batches=3,
        is_private=True,
        shared=shared,
        matmul="default",
    )


@pytest.fixture(scope="module")
def copies():
    with SharedTables(load()) as shared, Copies([job(0, shared), job(1, shared)]) as found:
        yield found


def test_a_copy_has_a_thread_on_its_core(copies):
    for number, ready in enumerate(copies.ready):
        core = job(number).core
        assert ready.cores == (core,)
        assert ready.num_threads == 1
        for thread in Path(f"/proc/{ready.pid}/task").iterdir():
            status = (thread / "status").read_text()
            assert f"Cpus_allowed_list:\t{core}\n" in status


def test_they_run_from_one_moment_on(copies):
    for tables in ("private", "shared"):
        began = time.perf_counter_ns()
        stamps, stop = copies.run([0, 1], tables, 0.05)
        for each in stamps:
            assert began < each[0]
            assert each[0] >= stop - 50_000_000  # not before the start
            assert (np.diff(each) > 0).all()
            assert each[-1] >= stop
            assert each[-2] < stop or len(each) == 2


def test_some_run_and_the_others_wait(copies):
    stamps, _ = copies.run([1], "private", 0.01)
    assert len(stamps) == 1


def test_one_that_ended_is_told():
    with Copies([job(0)]) as copies:
        pid = copies.ready[0].pid
        os.kill(pid, signal.SIGKILL)
        _await_end(pid)
        with pytest.raises(BenchError, match=r"copy 0 of 1, of rmc1-paper, .*killed by signal 9"):
            copies.run([0], "private", 0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_what_keeps_one_from_being_built_is_told():
    huge = load("data.sparse.0.max_rows=2000000000")
    with pytest.raises(ConfigError, match=r"tables take .* give --rows-scale"):
        Copies([job(0, model=huge)])


def test_a_closed_loop_calls_at_once_again():
    seen: list[int] = []

    def call(k: int) -> None:
        seen.append(k)
        time.sleep(0.002)

    start = time.perf_counter_ns() + 5_000_000
    stop = start + 20_000_000
    stamps = closed_loop(call, torch.device("cpu"), 7, start, stop)
    assert seen == list(range(7, 7 + len(stamps) - 1))
    assert stamps[0] >= start
    assert stamps[-1] >= stop
    late = closed_loop(call, torch.device("cpu"), 0, start, stop)
    assert len(late) == 2  # one call, however late


def _await_end(pid: int) -> None:
    """Until a process has ended, though its parent has not asked yet."""
    status = Path(f"/proc/{pid}/status")
    while "State:\tZ" not in status.read_text():
        time.sleep(0.01)
