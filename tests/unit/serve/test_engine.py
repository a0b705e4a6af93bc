"""Engines with real worker processes and a model whose answers and times are planted."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from fastdlrm.errors import (
    DeadlineExceeded,
    ExportError,
    FastDLRMError,
    Overloaded,
    RequestError,
    ServeError,
)
from fastdlrm.serve.engine import Engine
from fastdlrm.serve.options import EngineOptions
from fastdlrm.serve.pool import cores_of, staleness_s
from fastdlrm.serve.worker import NICE
from fastdlrm.serve.workers import Nursery, reason_of
from tests.serving_model import (
    BATCH_FAULT,
    FAULT,
    HANG,
    LOADER,
    POISON,
    SHORT,
    WRONG,
    query_of,
    query_of_rows,
)

pytestmark = [pytest.mark.xdist_group("engine"), pytest.mark.timeout(120)]


class Loop:
    """One event loop, and one nursery, for all tests here."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.nursery = Nursery()

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(test, 100)

        self.runner.run(bounded())


@contextmanager
def running_loop() -> Iterator[Loop]:
    """A loop, whose nursery ends with it."""
    made = Loop()
    with made.runner:
        yield made

        async def stop() -> None:
            made.nursery.stop()

        made.runner.run(stop())


@pytest.fixture(scope="module")
def loop():
    with running_loop() as made:
        yield made


class Planted:
    """Starts engines of planted models, and stops those that a test leaves."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.folder = folder
        self.nursery = nursery
        self.flushed: list[tuple[str, int, float]] = []

    def file(self, **plan: Any) -> Path:
        path = self.folder / "model.json"
        path.write_text(json.dumps(plan))
        return path

    async def start(self, plan: dict[str, Any] | None = None, **options: Any) -> Engine:
        chosen = EngineOptions(**{"loader": LOADER, "arena_bytes": 2**20, **options})
        path = self.file(**(plan or {}))
        recorder = _Recorder(self.flushed)
        return await Engine.start(path, "ctr", "3", chosen, self.nursery, recorder)


class _Recorder:
    def __init__(self, flushed: list[tuple[str, int, float]]) -> None:
        self._flushed = flushed

    def flushed(self, reason: str, rows: int, fill: float) -> None:
        self._flushed.append((reason, rows, fill))


@pytest.fixture
def planted(loop, tmp_path):
    return Planted(tmp_path, loop.nursery)


async def outcome(engine: Engine, *values: float, **query: Any) -> np.ndarray | FastDLRMError:
    """The scores, or the error."""
    try:
        return (await engine.submit(query_of(*values, **query))).scores
    except FastDLRMError as problem:
        return problem


async def until(is_so, within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- scores


def test_queries_small_and_large_get_their_scores(loop, planted):
    async def test() -> None:
        engine = await planted.start(num_workers=2, max_batch_rows=16)
        assert [dict(row) for row in engine.examples] == [{"x": "1.5"}, {"x": None}]
        queries = [np.arange(rows, dtype=np.float32) + rows for rows in (1, 3, 200, 16, 17, 1)]
        found = await asyncio.gather(*(engine.submit(query_of_rows(x)) for x in queries))
        for x, scores in zip(queries, found, strict=True):
            assert scores.scores.dtype == np.float32
            assert np.array_equal(scores.scores, 2 * x)
            assert scores.queue_ns >= 0
            assert scores.encode_ns > 0
            assert scores.compute_ns > 0
        figures = engine.statistics()
        assert figures.num_answered == 6
        assert figures.num_rows == sum(len(x) for x in queries) == 238
        assert sum(figures.flushes.values()) == len(planted.flushed)
        assert sum(rows for _, rows, _ in planted.flushed) == 238
        assert all(fill == rows / 16 for _, rows, fill in planted.flushed)
        assert (figures.num_in_flight, figures.queue_rows, figures.arena_used_bytes) == (0, 0, 0)
        await engine.stop()

    loop.run(test())


def test_a_query_without_rows_has_no_scores(loop, planted):
    async def test() -> None:
        engine = await planted.start()
        scores = await engine.submit(query_of())
        assert scores.scores.shape == (0,)
        await engine.stop()

    loop.run(test())


def test_a_bad_part_of_a_merged_batch_fails_alone(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.05})
        first = asyncio.create_task(outcome(engine, 0.0))  # the rest is merged behind it
        await asyncio.sleep(0)
        kinds = (7.0, WRONG, FAULT, BATCH_FAULT, SHORT, 8.0)
        found = await asyncio.gather(*(outcome(engine, x) for x in kinds))
        assert np.array_equal(await first, [0.0])
        assert planted.flushed[1][1] == 6
        good, wrong, fault, batch_fault, short, too = found
        assert np.array_equal(good, [14.0])
        assert np.array_equal(too, [16.0])
        assert type(wrong) is RequestError
        assert str(wrong) == "row 0: -1.0 is out of range; correct the row"
        for problem, words in (
            (fault, r"worker 0: encoding: KeyError (serving_model.py:"),
            (batch_fault, "worker 0: scoring: ArithmeticError (serving_model.py:"),
            (short, "worker 0: (0,) scores of 1 rows; the model is at fault"),
        ):
            assert type(problem) is ServeError
            assert str(problem).startswith(words), problem
        figures = engine.statistics()
        assert (figures.num_answered, figures.num_failed) == (3, 4)
        assert figures.arena_used_bytes == 0
        await engine.stop()

    loop.run(test())


# ---- refusals, deadlines, cancellation


def test_a_full_arena_refuses(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.1}, arena_bytes=4096)
        x = np.zeros(600, np.float32)  # 2400 bytes of 4096
        first = asyncio.create_task(engine.submit(query_of_rows(x)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"no room for inputs of 24\d\d bytes") as refused:
            await engine.submit(query_of_rows(x))
        assert refused.value.retry_after_s > 0
        with pytest.raises(RequestError, match=r"4096 are allowed: send fewer rows") as problem:
            await engine.submit(query_of_rows(np.zeros(2000, np.float32)))
        assert type(problem.value) is RequestError
        await first
        assert engine.statistics().refused == {"arena": 1}
        assert engine.statistics().arena_used_bytes == 0
        assert np.array_equal((await engine.submit(query_of_rows(x))).scores, x)
        await engine.stop()

    loop.run(test())


def test_a_deadline_is_kept_while_a_worker_is_busy(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.001}, depth=1)
        hanging = asyncio.create_task(outcome(engine, HANG, within_s=0.3))
        await asyncio.sleep(0)
        waiting = await outcome(engine, 1.0, within_s=0.2)
        assert type(waiting) is DeadlineExceeded
        assert "1 rows could not be scored in time" in str(waiting)
        assert type(await hanging) is DeadlineExceeded
        assert engine.statistics().queue_rows == 0
        assert engine.statistics().arena_used_bytes > 0  # the worker may still read it
        await engine.stop(0.1)

    loop.run(test())


def test_scores_that_come_after_the_deadline_are_of_no_use(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.045}, depth=1)
        assert type(await outcome(engine, 1.0, within_s=0.042)) is DeadlineExceeded
        await until(lambda: engine.statistics().num_running == 0)
        assert engine.statistics().num_answered == 0
        assert engine.statistics().arena_used_bytes == 0
        await engine.stop()

    loop.run(test())


def test_cancelled_queries_are_dropped_and_their_memory_is_freed(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.05}, depth=1)
        tasks = [asyncio.create_task(engine.submit(query_of(float(i)))) for i in range(20)]
        await asyncio.sleep(0.01)
        for task in tasks[:15]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(problem, asyncio.CancelledError) for problem in found[:15])
        assert [scores.scores[0] for scores in found[15:]] == [30.0, 32.0, 34.0, 36.0, 38.0]
        figures = engine.statistics()
        assert (figures.num_cancelled, figures.num_answered) == (15, 5)
        assert figures.num_rows == 6  # the first was with the worker
        assert figures.arena_used_bytes == 0
        await engine.stop()

    loop.run(test())


def test_twice_the_load_is_shed_and_what_is_accepted_is_in_time(loop, planted):
    """Two workers that sleep 10 ms a batch of 10 rows: 200 queries of 10 rows a second."""

    async def test() -> None:
        plan = {"batch_s": 0.01}
        engine = await planted.start(plan, num_workers=2, max_batch_rows=10, depth=2)
        x = np.zeros(10, np.float32)
        start = time.monotonic()
        late_s: list[float] = []
        refusals_s: list[float] = []
        num_late = 0

        async def ask(index: int) -> None:
            nonlocal num_late
            await asyncio.sleep(max(start + index / 400 - time.monotonic(), 0))
            query = query_of_rows(x, within_s=0.1)
            began = time.perf_counter()
            try:
                await engine.submit(query)
                late_s.append(time.monotonic() - query.deadline_s)
            except Overloaded:
                refusals_s.append(time.perf_counter() - began)
            except DeadlineExceeded:
                num_late += 1

        await asyncio.gather(*(ask(index) for index in range(1200)))  # three seconds
        took_s = time.monotonic() - start
        figures = engine.statistics()
        assert figures.num_restarts == 0
        assert figures.arena_used_bytes == 0
        assert figures.refused.keys() <= {"predicted"}
        assert len(refusals_s) > 300
        assert len(late_s) > 0.75 * 200 * took_s  # loosely: other tests share the cores
        assert num_late + sum(late > 0 for late in late_s) < 0.1 * len(late_s)
        assert sorted(refusals_s)[len(refusals_s) // 2] < 0.001
        await engine.stop()

    loop.run(test())


# ---- deaths


def test_kill_9_under_load_loses_nothing_and_the_worker_comes_back(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.002}, num_workers=2, max_batch_rows=4)
        before = engine.pids
        assert len({*before, 0}) == 3
        own = os.getpriority(os.PRIO_PROCESS, 0)
        for pid in before:
            assert os.getpriority(os.PRIO_PROCESS, pid) == min(own + NICE, 19)
        is_over = False
        found: list[Any] = []

        async def ask(first: float) -> None:
            while not is_over:
                values = (first, first + 1)
                scores = await outcome(engine, *values)
                found.append((values, scores))

        clients = [asyncio.create_task(ask(10.0 * index)) for index in range(8)]
        await asyncio.sleep(0.1)
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: engine.statistics().num_restarts == 1)
        await until(lambda: engine.statistics().num_workers == 2, within_s=20)
        await asyncio.sleep(0.1)
        is_over = True
        await asyncio.gather(*clients)
        for values, scores in found:
            assert isinstance(scores, np.ndarray), scores
            assert np.array_equal(scores, 2 * np.float32(values))
        assert engine.pids[1] == before[1]
        assert engine.pids[0] not in before
        assert engine.statistics().arena_used_bytes == 0
        await engine.stop()

    loop.run(test())


def test_what_kills_a_worker_is_tried_once_more_and_harms_no_other(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.02}, num_workers=2)
        asked = [asyncio.create_task(outcome(engine, x)) for x in (1.0, 2.0, POISON, 3.0, 4.0)]
        *_, poison, third, fourth = found = await asyncio.gather(*asked)
        assert type(poison) is ServeError
        assert "ended: killed by signal 9" in str(poison)
        assert "a worker before it died of the same rows" in str(poison)
        assert [scores[0] for scores in (found[0], found[1], third, fourth)] == [2.0, 4.0, 6.0, 8.0]
        assert engine.statistics().num_restarts == 2
        assert engine.statistics().arena_used_bytes == 0
        await until(lambda: engine.statistics().num_workers == 2)
        await engine.stop()

    loop.run(test())


def test_a_hung_worker_is_ended_and_replaced(loop, planted):
    async def test() -> None:
        engine = await planted.start(num_workers=1, hang_timeout_s=0.3)
        (pid,) = engine.pids
        problem = await outcome(engine, HANG)
        assert type(problem) is ServeError
        assert "a batch took more than 0.3 s" in str(problem)
        assert engine.statistics().num_restarts == 2  # it was tried once more
        assert not is_alive(pid)
        assert np.array_equal(await outcome(engine, 1.0), [2.0])
        await engine.stop()

    loop.run(test())


def test_a_stopped_worker_takes_no_messages_for_ever(loop, planted):
    """SIGSTOP: alive, not a word. What it had is answered by its replacement."""

    async def test() -> None:
        engine = await planted.start(num_workers=1, hang_timeout_s=0.3)
        os.kill(engine.pids[0], signal.SIGSTOP)
        assert np.array_equal(await outcome(engine, 5.0), [10.0])
        assert engine.statistics().num_restarts == 1
        await engine.stop()

    loop.run(test())


def test_workers_come_back_after_the_process_that_starts_them_died(loop, planted):
    async def test() -> None:
        engine = await planted.start(num_workers=2)
        before = engine.pids
        os.kill(planted.nursery.pid, signal.SIGKILL)
        await until(lambda: engine.statistics().num_restarts == 2)
        assert np.array_equal(await outcome(engine, 5.0), [10.0])
        await until(lambda: not any(is_alive(pid) for pid in before))
        await engine.stop()

    loop.run(test())


FRONT = """
import asyncio, sys
from pathlib import Path
from fastdlrm.serve.engine import Engine
from fastdlrm.serve.options import EngineOptions
from fastdlrm.serve.workers import Nursery
from tests.serving_model import HANG, LOADER, query_of

async def main():
    nursery = Nursery()
    options = EngineOptions(loader=LOADER, num_workers=2)
    engine = await Engine.start(Path(sys.argv[1]), "ctr", "1", options, nursery)
    asyncio.create_task(engine.submit(query_of(HANG)))
    await asyncio.sleep(0.1)
    print(nursery.pid, *engine.pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_workers_end_with_the_front_though_one_hangs(planted):
    root = Path(__file__).parents[3]
    path = os.pathsep.join((str(root), *sys.path))
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT, planted.file()],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    with front:
        pids = [int(word) for word in front.stdout.readline().split()]
        assert len(pids) == 3
        assert all(is_alive(pid) for pid in pids)
        front.kill()
    end = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end, "a worker outlives its front"
        time.sleep(0.01)


# ---- starts that fail


def test_a_model_that_is_refused_is_not_served(loop, planted):
    async def test() -> None:
        with pytest.raises(ExportError, match=r"model\.json: golden row 3 scores otherwise"):
            await planted.start({"load": "refuse"}, num_workers=2)

    loop.run(test())


def test_a_worker_that_dies_while_it_loads_is_told(loop, planted):
    async def test() -> None:
        with pytest.raises(ServeError, match=r"worker 0 \(pid \d+\) ended: exit code 3, before"):
            await planted.start({"load": "die"})

    loop.run(test())


def test_a_loader_that_is_not_there_is_told(loop, planted):
    async def test() -> None:
        with pytest.raises(ServeError, match=r"loader 'tests\.serving_model:nope': .*nope"):
            await planted.start(loader="tests.serving_model:nope")

    loop.run(test())


def test_a_start_that_takes_too_long_is_given_up(loop, planted):
    async def test() -> None:
        words = r"not ready after 0\.2 s; raise workers\.start_timeout_s, before its model"
        with pytest.raises(ServeError, match=words):
            await planted.start({"load_s": 60}, start_timeout_s=0.2)

    loop.run(test())


def test_workers_that_cannot_be_started_again_make_queries_fail(loop, planted):
    async def test() -> None:
        engine = await planted.start({"lives": 1})
        os.kill(engine.pids[0], signal.SIGKILL)
        await until(lambda: engine.statistics().num_restarts == 1)
        waiting = await outcome(engine, 1.0)
        assert type(waiting) is ServeError
        assert "model 'ctr' version 3: no worker runs, and none could be started" in str(waiting)
        assert "killed by signal 9" in str(waiting)
        assert "before its model was loaded" in str(waiting)
        at_once = await outcome(engine, 1.0)
        assert type(at_once) is ServeError
        planted.file()  # it loads again
        await until(lambda: engine.statistics().num_workers == 1)
        assert np.array_equal(await outcome(engine, 1.0), [2.0])
        await engine.stop()

    loop.run(test())


# ---- the end


def test_draining_answers_all_and_takes_no_more(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.02}, max_batch_rows=2, depth=1)
        asked = [asyncio.create_task(outcome(engine, float(i))) for i in range(10)]
        await asyncio.sleep(0)
        assert not await engine.drain(0.01)
        with pytest.raises(Overloaded, match="model 'ctr' version 3 is being replaced"):
            await engine.submit(query_of(1.0))
        assert await engine.drain(30)
        assert [float(scores[0]) for scores in [await a for a in asked]] == [
            2.0 * i for i in range(10)
        ]
        assert engine.statistics().num_in_flight == 0
        pids = engine.pids
        await engine.stop()
        await until(lambda: not any(is_alive(pid) for pid in pids))

    loop.run(test())


def test_stopping_fails_what_has_no_answer(loop, planted):
    async def test() -> None:
        engine = await planted.start({"batch_s": 0.2})
        asked = asyncio.create_task(outcome(engine, 1.0))
        await asyncio.sleep(0)
        await engine.stop()
        assert str(await asked) == "model 'ctr' version 3 was stopped"
        with pytest.raises(Overloaded, match="is stopped"):
            await engine.submit(query_of(1.0))

    loop.run(test())


def test_queries_wait_for_others_while_a_worker_idles(loop, planted):
    async def test() -> None:
        engine = await planted.start(max_queue_delay_s=0.05, max_batch_rows=100)
        asked = [asyncio.create_task(outcome(engine, float(i))) for i in range(5)]
        for index, task in enumerate(asked):
            assert np.array_equal(await task, [2.0 * index])
        assert planted.flushed == [("delay", 5, 0.05)]
        await engine.stop()

    loop.run(test())


# ---- deltas


def delta(folder: Path, sequence: int, offset: float, **more: Any) -> Path:
    path = folder / f"{sequence}.delta"
    made = {"sequence": sequence, "offset": offset, "created_s": 1000.0 + sequence, **more}
    path.write_text(json.dumps(made))
    return path


def test_deltas_reach_all_workers_and_those_that_replace_them(loop, planted):
    async def test() -> None:
        engine = await planted.start(num_workers=2)
        assert (engine.sequence, engine.staleness_s) == (0, None)
        assert await engine.apply(delta(planted.folder, 1, 100.0)) == 1
        assert await engine.apply(delta(planted.folder, 2, 300.0)) == 2
        assert engine.staleness_s == pytest.approx(time.time() - 1002, abs=5)
        for pid in engine.pids:
            found = await asyncio.gather(*(outcome(engine, float(i)) for i in range(4)))
            assert [scores[0] for scores in found] == [300.0, 302.0, 304.0, 306.0]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not is_alive(pid))  # noqa: B023 it is awaited at once
        await until(lambda: engine.statistics().num_restarts == 2)
        await until(lambda: engine.statistics().num_workers == 2)
        found = await asyncio.gather(*(outcome(engine, float(i)) for i in range(8)))
        assert [scores[0] for scores in found] == [300.0 + 2 * i for i in range(8)]
        await engine.stop()

    loop.run(test())


def test_a_delta_that_does_not_follow_changes_nothing(loop, planted):
    async def test() -> None:
        engine = await planted.start(num_workers=2)
        with pytest.raises(ExportError, match="delta 5 after 0"):
            await engine.apply(delta(planted.folder, 5, 100.0))
        found = await asyncio.gather(*(outcome(engine, 1.0) for _ in range(6)))
        assert [scores[0] for scores in found] == [2.0] * 6
        assert engine.sequence == 0
        await engine.stop()

    loop.run(test())


def test_a_worker_that_dies_of_a_delta_is_replaced_without_it(loop, planted):
    async def test() -> None:
        engine = await planted.start(num_workers=1)
        with pytest.raises(ServeError, match=r"killed by signal 9.*while it applied a delta"):
            await engine.apply(delta(planted.folder, 1, 100.0, die=True))
        with pytest.raises(ServeError, match="no worker runs that a delta could be applied to"):
            await engine.apply(delta(planted.folder, 1, 100.0))
        assert np.array_equal(await outcome(engine, 1.0), [2.0])
        assert await engine.apply(delta(planted.folder, 1, 50.0)) == 1
        assert np.array_equal(await outcome(engine, 1.0), [52.0])
        await engine.stop()

    loop.run(test())


def test_reasons_in_words():
    assert reason_of(3) == "exit code 3"
    assert reason_of(-11) == "killed by signal 11"
    assert reason_of(-9).startswith("killed by signal 9: by hand, or for want of memory")


def test_workers_stay_on_cores_of_their_own_where_there_are_enough():
    allowed = sorted(os.sched_getaffinity(0))
    assert cores_of(len(allowed)) == allowed
    assert cores_of(len(allowed) + 1) == [-1] * (len(allowed) + 1)
    assert staleness_s(None) is None
    assert staleness_s(time.time() + 1000) == 0.0
