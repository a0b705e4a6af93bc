"""Whatever comes, every query ends once, batches keep their bounds, and order is kept."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.errors import DeadlineExceeded, Overloaded
from fastdlrm.serve.batcher import Batcher, Limits
from fastdlrm.serve.cost import CostModel
from fastdlrm.serve.waiting import level_of
from tests.batcher_simulation import Arrival, Simulation

ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at_s=st.floats(0, 0.2),
        num_rows=st.integers(1, 70),
        within_s=st.sampled_from([0.0, 0.01, 0.05, 1.0, 100.0]),
        priority=st.sampled_from([0, 0, 0, 1, 2, 99]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=ARRIVALS,
    num_workers=st.integers(1, 3),
    max_batch_rows=st.integers(1, 40),
    max_queue_rows=st.integers(1, 400),
    delay_s=st.sampled_from([0.0, 0.0, 0.005, 0.1]),
    depth=st.integers(1, 3),
    row_s=st.sampled_from([0.0, 1e-5, 1e-3]),
)
def test_every_query_ends_once_within_bounds(
    arrivals, num_workers, max_batch_rows, max_queue_rows, delay_s, depth, row_s
):
    limits = Limits(
        max_batch_rows=max_batch_rows,
        max_queue_rows=max_queue_rows,
        max_queue_delay_s=delay_s,
        depth=depth,
    )
    batcher = Batcher(limits, num_workers)
    simulation = Simulation(batcher, num_workers, lambda rows: 0.002 + row_s * rows)
    simulation.run(arrivals)

    assert Counter(o.arrival for o in simulation.outcomes) == Counter(arrivals)
    assert batcher.num_live == batcher.queue_rows == batcher.num_running == 0
    assert simulation.most_rows <= max(max_queue_rows, 70)
    rows_of_entry: Counter[int] = Counter()
    for batch in simulation.batches:
        assert 0 < batch.num_rows == sum(p.num_rows for p in batch.parts) <= max_batch_rows
        assert batch.reason in {"full", "idle", "delay", "deadline"}
        for part in batch.parts:
            rows_of_entry[part.entry.id] += part.num_rows
    for outcome in simulation.outcomes:
        if outcome.how == "answered":
            assert outcome.at_s >= outcome.arrival.at_s
    for entry in {p.entry for b in simulation.batches for p in b.parts}:
        if not entry.parts_left:
            assert rows_of_entry[entry.id] == entry.num_rows
        else:  # late: what was not sent was dropped
            assert rows_of_entry[entry.id] < entry.num_rows or entry.is_ended


@settings(max_examples=60, deadline=None)
@given(arrivals=ARRIVALS, max_batch_rows=st.integers(1, 40))
def test_within_a_priority_queries_leave_in_the_order_they_came(arrivals, max_batch_rows):
    patient = [arrival._replace(within_s=1e6) for arrival in arrivals]
    batcher = Batcher(Limits(max_batch_rows=max_batch_rows, max_queue_rows=10**6), 1)
    simulation = Simulation(batcher, 1, lambda _: 0.003)
    simulation.run(patient)

    assert {outcome.how for outcome in simulation.outcomes} <= {"answered"}
    sent = [part for batch in simulation.batches for part in batch.parts]
    for level in {level_of(arrival.priority) for arrival in patient}:
        found = [(p.entry.id, p.start) for p in sent if p.entry.level == level]
        assert found == sorted(found)


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
        limits = Limits(max_batch_rows=10, max_queue_rows=100, depth=depth, max_queue_delay_s=delay)
        self.batcher = Batcher(limits, 3)
        self.batcher.cost = CostModel([(1, 0.001), (10, 0.010)])
        for worker in range(3):
            self.batcher.open(worker)
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
