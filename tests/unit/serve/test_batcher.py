"""Queries to batches: cut, merged, ordered, refused, each ended once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.errors import DeadlineExceeded, Overloaded
from fastdlrm.serve.batcher import Batcher, Limits
from fastdlrm.serve.cost import CostModel

ROW_S = 0.001


def make(num_workers=1, **limits):
    """A batcher whose batches cost 1 ms a row, all workers open."""
    batcher = Batcher(
        Limits(**{"max_batch_rows": 10, "max_queue_rows": 100, **limits}), num_workers
    )
    batcher.cost = CostModel([(1, ROW_S), (10, 10 * ROW_S)])
    for worker in range(num_workers):
        batcher.open(worker)
    return batcher


def spans(batch):
    return [(part.entry.id, part.start, part.stop) for part in batch.parts]


def test_a_large_query_is_cut_into_equal_parts():
    batcher = make()
    batcher.add(25, 1.0, 0, 0.0)
    batch = batcher.take(0.0)
    assert spans(batch) == [(1, 0, 9)]
    batcher.finished(0, 0.01, 0.01)
    assert spans(batcher.take(0.01)) == [(1, 9, 18)]
    batcher.finished(0, 0.02, 0.01)
    last = batcher.take(0.02)
    assert spans(last) == [(1, 18, 25)]
    done = batcher.finished(0, 0.03, 0.01)
    assert done.parts[0].entry.parts_left == 0


def test_small_queries_that_wait_go_together():
    batcher = make(depth=1)
    batcher.add(4, 1.0, 0, 0.0)
    assert batcher.take(0.0).num_rows == 4
    for _ in range(4):
        batcher.add(3, 1.0, 0, 0.0)
    assert batcher.take(0.0) is None  # the worker is busy
    batcher.finished(0, 0.004, 0.004)
    batch = batcher.take(0.004)
    assert (batch.num_rows, len(batch.parts), batch.reason) == (9, 3, "full")
    batcher.finished(0, 0.013, 0.009)
    assert batcher.take(0.013).reason == "idle"


def test_a_second_batch_goes_ahead_only_when_it_is_full():
    batcher = make(depth=2)
    batcher.add(4, 1.0, 0, 0.0)
    batcher.take(0.0)
    batcher.add(9, 1.0, 0, 0.0)
    assert batcher.take(0.0) is None
    batcher.add(9, 1.0, 0, 0.0)
    assert batcher.take(0.0).reason == "full"
    assert batcher.running(0) == 2


def test_priority_1_goes_first_and_0_last():
    batcher = make(depth=1)
    batcher.add(1, 1.0, 0, 0.0)
    batcher.take(0.0)
    for priority in (0, 2, 1, 0):
        batcher.add(6, 1.0, priority, 0.0)
    order = []
    for step in range(4):
        batcher.finished(0, 0.1 * step, ROW_S)
        order.append(batcher.take(0.1 * step).parts[0].entry.level)
    assert order == [0, 1, 16, 16]


def test_what_would_be_late_is_refused_at_once():
    batcher = make(depth=1)
    batcher.add(10, 1.0, 0, 0.0)
    batcher.take(0.0)
    batcher.add(10, 0.021, 0, 0.0)  # 10 ms after the 10 ms before it
    with pytest.raises(Overloaded, match=r"10 rows would come .* ms after the deadline") as error:
        batcher.add(10, 0.025, 0, 0.0)
    assert 0.004 < error.value.retry_after_s < 0.006  # 30 ms are needed
    assert batcher.refused == {"predicted": 1}


def test_an_idle_engine_takes_any_query():
    batcher = make()
    batcher.add(10, 0.001, 0, 0.0)
    assert batcher.take(0.0).num_rows == 10
    with pytest.raises(DeadlineExceeded, match=r"passed 1000.0 ms before the query came"):
        batcher.add(1, 1.0, 0, 2.0)


def test_rows_that_wait_are_bounded():
    batcher = make(depth=1, max_queue_rows=20)
    batcher.add(1, 9.0, 0, 0.0)
    batcher.take(0.0)
    batcher.add(20, 9.0, 0, 0.0)
    with pytest.raises(Overloaded, match=r"20 rows wait, 20 may: no room for 1 more"):
        batcher.add(1, 9.0, 0, 0.0)


def test_what_is_late_in_the_queue_is_dropped_with_its_siblings():
    batcher = make(depth=1)
    batcher.add(10, 9.0, 0, 0.0)
    batcher.take(0.0)
    late = batcher.add(20, 0.05, 0, 0.0)
    batcher.add(10, 9.0, 0, 0.0)
    batcher.finished(0, 0.045, 0.01)  # it took longer than was thought
    batch = batcher.take(0.045)
    assert batcher.dropped == [late]
    assert late.is_ended
    assert spans(batch) == [(3, 0, 10)]
    assert batcher.queue_rows == 0


def test_a_delay_lets_others_join():
    batcher = make(max_queue_delay_s=0.005)
    batcher.add(3, 1.0, 0, 0.0)
    assert batcher.take(0.0) is None
    assert batcher.wake_s() == pytest.approx(0.005)
    batcher.add(3, 1.0, 0, 0.004)
    batch = batcher.take(0.005)
    assert (batch.num_rows, batch.reason) == (6, "delay")
    batcher.add(3, 0.5, 0, 0.1)
    batcher.is_draining = True
    batcher.finished(0, 0.1, 0.006)
    assert batcher.take(0.1).reason == "drain"


def test_a_cancelled_query_is_dropped():
    batcher = make(depth=1)
    batcher.add(1, 9.0, 0, 0.0)
    batcher.take(0.0)
    entry = batcher.add(30, 9.0, 0, 0.0)
    batcher.end(entry)
    assert batcher.queue_rows == 0
    batcher.finished(0, 0.1, 0.1)
    assert batcher.take(0.1) is None


def test_a_dead_workers_work_is_tried_once_more_alone():
    batcher = make(num_workers=2, depth=1)
    for _ in range(2):
        batcher.add(4, 9.0, 0, 0.0)
    first = batcher.take(0.0)
    batcher.add(4, 9.0, 0, 0.0)
    assert batcher.lost(first.worker) == []
    batcher.finished(1 - first.worker, 0.01, 0.01) if batcher.running(1 - first.worker) else None
    retried = batcher.take(0.01)
    assert retried.reason == "retry"
    assert len(retried.parts) == 1
    failed = batcher.lost(retried.worker)
    assert [entry.id for entry in failed] == [retried.parts[0].entry.id]


def test_hung_workers_are_found():
    batcher = make(hang_timeout_s=1.0)
    batcher.add(1, 99.0, 0, 0.0)
    batcher.take(0.0)
    assert batcher.hung(0.9) == []
    assert batcher.hung(1.1) == [0]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 35), st.floats(0.005, 0.2)),
        st.tuples(st.just("take"), st.none(), st.none()),
        st.tuples(st.just("finish"), st.integers(0, 2), st.none()),
        st.tuples(st.just("lose"), st.integers(0, 2), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 99), st.none()),
        st.tuples(st.just("wait"), st.none(), st.floats(0, 0.05)),
    ),
    max_size=80,
)


class Played:
    """A batcher under any course of events, and what must hold of it."""

    def __init__(self, depth, delay):
        self.batcher = make(num_workers=3, depth=depth, max_queue_delay_s=delay)
        self.depth = depth
        self.now = 0.0
        self.live, self.scored, self.sizes = {}, {}, {}

    def play(self, what, number, seconds):
        getattr(self, what)(number, seconds)
        assert self.batcher.num_live == len(self.live)
        assert self.batcher.queue_rows == sum(e.rows_waiting for e in self.live.values())

    def add(self, number, seconds):
        try:
            entry = self.batcher.add(number, self.now + seconds, 0, self.now)
        except (Overloaded, DeadlineExceeded):
            return
        self.live[entry.id], self.scored[entry.id] = entry, set()
        self.sizes[entry.id] = number

    def take(self, _number, _seconds):
        batch = self.batcher.take(self.now)
        if batch is not None:
            assert batch.num_rows <= 10 or len(batch.parts) == 1
            assert self.batcher.running(batch.worker) <= self.depth
        for entry in self.batcher.dropped:
            self.live.pop(entry.id)
        self.batcher.dropped.clear()
        return batch

    def finish(self, worker, _seconds):
        if not self.batcher.running(worker):
            return
        for part in self.batcher.finished(worker, self.now, 0.01).parts:
            entry, rows = part.entry, set(range(part.start, part.stop))
            assert not rows & self.scored[entry.id]
            self.scored[entry.id] |= rows
            if not entry.parts_left and not entry.is_ended:
                assert len(self.scored[entry.id]) == self.sizes[entry.id]
                self.batcher.complete(entry, self.now)
                self.live.pop(entry.id)

    def lose(self, worker, _seconds):
        for entry in self.batcher.lost(worker):
            self.end(entry)
        self.batcher.open(worker)

    def cancel(self, number, _seconds):
        if self.live:
            self.end(self.live[sorted(self.live)[number % len(self.live)]])

    def wait(self, _number, seconds):
        self.now += seconds
        for entry in self.batcher.expired(self.now):
            self.end(entry)

    def end(self, entry):
        self.batcher.end(entry)
        self.live.pop(entry.id, None)

    def run_dry(self):
        self.batcher.is_draining = True
        for _ in range(250):
            while self.take(None, None) is not None:
                pass
            for worker in range(3):
                self.finish(worker, None)
            self.wait(None, 0.001)


@given(STEPS, st.sampled_from([1, 2]), st.sampled_from([0.0, 0.004]))
@settings(max_examples=150, deadline=None)
def test_every_row_is_scored_once_or_its_query_ended(steps, depth, delay):
    played = Played(depth, delay)
    for step in steps:
        played.play(*step)
    played.run_dry()
    assert not played.live
    assert played.batcher.queue_rows == played.batcher.num_running == 0
