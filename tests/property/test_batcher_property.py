"""Whatever comes, every query ends once, batches keep their bounds, and order is kept."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.serve.batcher import Batcher, Limits
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
