"""The batcher by hand: cutting, merging, reasons, refusals, deadlines, deaths, overload."""

import random

import pytest

from fastdlrm.errors import DeadlineExceeded, Overloaded
from fastdlrm.serve.batcher import Batch, Batcher, Limits
from fastdlrm.serve.cost import CostModel
from tests.batcher_simulation import Arrival, Simulation


def batcher_of(num_workers: int = 1, measured=((1, 0.001), (100, 0.010)), **limits) -> Batcher:
    made = Batcher(Limits(**{"max_batch_rows": 100, "max_queue_rows": 1000, **limits}), num_workers)
    made.cost = CostModel(measured)
    for worker in range(num_workers):
        made.open(worker)
    return made


def spans(batch: Batch | None) -> list[tuple[int, int, int]]:
    assert batch is not None
    return [(part.entry.id, part.start, part.stop) for part in batch.parts]


def test_a_large_query_is_cut_into_equal_parts_and_small_ones_are_put_together():
    batcher = batcher_of(depth=1)
    batcher.add(250, 9.0, 0, now=0.0)  # 3 parts: 84, 84, 82
    batcher.add(10, 9.0, 0, now=0.0)
    batcher.add(8, 9.0, 0, now=0.0)
    batcher.add(1, 9.0, 0, now=0.0)
    assert spans(batcher.take(0.0)) == [(1, 0, 84)]
    assert batcher.take(0.0) is None
    batcher.finished(0, 0.01, 0.01)
    assert spans(batcher.take(0.01)) == [(1, 84, 168)]
    batcher.finished(0, 0.02, 0.01)
    last = batcher.take(0.02)
    assert spans(last) == [(1, 168, 250), (2, 0, 10), (3, 0, 8)]  # 82 + 10 + 8 = 100
    assert last.reason == "full"
    batcher.finished(0, 0.03, 0.01)
    assert batcher.take(0.03).reason == "idle"
    assert batcher.flushes == {"full": 3, "idle": 1}


def test_a_higher_priority_goes_first():
    batcher = batcher_of(depth=1, max_batch_rows=1)
    for priority in (0, 2, 1, 2, 0):
        batcher.add(1, 9.0, priority, now=0.0)
    order = []
    for _ in range(5):
        order += [part.entry.id for part in batcher.take(0.0).parts]
        batcher.finished(0, 0.0, 0.001)
    assert order == [3, 2, 4, 1, 5]


def test_a_second_batch_goes_ahead_only_when_it_is_full():
    batcher = batcher_of(depth=2)
    for _ in range(2):
        batcher.add(60, 9.0, 0, now=0.0)
    assert spans(batcher.take(0.0)) == [(1, 0, 60)]
    assert batcher.take(0.0) is None  # 60 rows wait, 100 are full
    batcher.add(60, 9.0, 0, now=0.0)
    ahead = batcher.take(0.0)
    assert spans(ahead) == [(2, 0, 60)]
    assert not ahead.was_idle
    batcher.add(100, 9.0, 0, now=0.0)
    assert batcher.take(0.0) is None  # the worker has two


def test_queries_wait_for_others_as_long_as_they_may():
    batcher = batcher_of(max_queue_delay_s=0.005)
    batcher.add(10, 9.0, 0, now=1.0)
    assert batcher.take(1.0) is None
    assert batcher.wake_s() == pytest.approx(1.005)
    batcher.add(10, 9.0, 0, now=1.002)
    assert batcher.take(1.004) is None
    due = batcher.take(1.0051)
    assert due.reason == "delay"
    assert due.num_rows == 20


def test_a_full_batch_waits_for_nobody():
    batcher = batcher_of(max_queue_delay_s=0.005)
    batcher.add(100, 9.0, 0, now=1.0)
    assert batcher.take(1.0).reason == "full"


def test_a_near_deadline_ends_the_wait():
    batcher = batcher_of(max_queue_delay_s=1.0)
    batcher.add(1, 0.1, 0, now=0.0)  # one row takes 1 ms: it must leave at 99 ms
    assert batcher.wake_s() == pytest.approx(0.099, abs=1e-4)
    assert batcher.take(0.098) is None
    assert batcher.take(0.0995).reason == "deadline"


def test_draining_ends_the_wait():
    batcher = batcher_of(max_queue_delay_s=1.0)
    batcher.add(1, 9.0, 0, now=0.0)
    batcher.is_draining = True
    assert batcher.take(0.0).reason == "drain"


def test_prediction_by_hand():
    batcher = batcher_of(num_workers=2, measured=[(1, 0.002), (101, 0.012)])
    batch_s, row_s = batcher.cost.batch_s, batcher.cost.row_s
    assert (batch_s, row_s) == (pytest.approx(0.0019), pytest.approx(0.0001))
    assert batcher.predict_s(50, 0, 0.0) == pytest.approx(0.0019 + 0.005)
    for _ in range(2):
        batcher.add(100, 9.0, 0, now=0.0)
        batcher.take(0.0)
    # both workers have 11.9 ms left, 6.9 ms after 5 ms; then 1.9 + 5
    assert batcher.predict_s(50, 16, 0.005) == pytest.approx(0.0069 + 0.0069)


def test_a_query_that_would_be_late_is_refused_before_it_waits():
    batcher = batcher_of(depth=1)
    for _ in range(5):
        batcher.add(100, 9.0, 0, now=0.0)
    batcher.take(0.0)
    with pytest.raises(Overloaded, match=r"scores of 1 rows would come .* ms after the deadline"):
        batcher.add(1, 0.02, 0, now=0.0)
    with pytest.raises(Overloaded) as refused:
        batcher.add(100, 0.02, 0, now=0.0)
    assert 0.02 < refused.value.retry_after_s < 0.06  # 600 rows of 10 ms a hundred, less 20 ms
    batcher.add(1, 0.02, 1, now=0.0)  # goes first, so it is in time
    assert batcher.refused == {"predicted": 2}


def test_an_idle_engine_takes_what_it_believes_to_be_late():
    batcher = batcher_of(measured=[(1, 50.0)])
    batcher.add(1, 0.1, 0, now=0.0)
    assert batcher.take(0.0) is not None
    with pytest.raises(Overloaded, match="would come"):
        batcher.add(1, 0.1, 0, now=0.0)


def test_a_margin_keeps_what_would_be_late_out_but_takes_half_of_a_querys_time_at_most():
    batcher = batcher_of(measured=[(1, 0.001), (101, 0.011)])  # 0.9 ms + 0.1 ms a row
    batcher.add(100, 99.0, 0, now=0.0)
    batcher.take(0.0)  # 10.9 ms of work, so 1 row more has its score after 11.9 ms
    batcher.margin.seconds = 0.02
    with pytest.raises(Overloaded, match=r"of 1 rows would come 5\.9 ms after the deadline"):
        batcher.add(1, 0.012, 0, now=0.0)  # 11.9 + 6 - 12
    with pytest.raises(Overloaded, match=r"would come 1\.9 ms after the deadline"):
        batcher.add(1, 0.02, 0, now=0.0)  # 11.9 + 10 - 20
    batcher.add(1, 0.025, 0, now=0.0)  # 11.9 + 12.5 < 25
    batcher.margin.seconds = 60.0
    batcher.add(1, 10.0, 0, now=0.0)  # 5 s of its 10 are left for 12.9 ms of work


def test_a_passed_deadline_is_refused():
    with pytest.raises(DeadlineExceeded, match=r"passed 500\.0 ms before the query came"):
        batcher_of().add(1, 0.5, 0, now=1.0)


def test_waiting_rows_are_bounded():
    batcher = batcher_of(max_queue_rows=150)
    batcher.add(5000, 99.0, 0, now=0.0)  # alone it may be larger
    with pytest.raises(Overloaded, match="5000 rows wait, 150 may: no room for 1 more"):
        batcher.add(1, 99.0, 0, now=0.0)


def test_a_query_that_became_late_is_dropped_with_all_its_parts():
    batcher = batcher_of(depth=1)
    batcher.add(100, 9.0, 0, now=0.0)
    batcher.take(0.0)
    late = batcher.add(300, 0.06, 0, now=0.0)
    batcher.add(7, 9.0, 0, now=0.0)
    batcher.finished(0, 0.07, 0.07)
    assert spans(batcher.take(0.07)) == [(3, 0, 7)]
    assert batcher.dropped == [late]
    assert late.is_free
    assert batcher.queue_rows == 0


def test_a_cancelled_query_waits_no_longer_but_its_memory_is_not_free_while_a_worker_has_it():
    batcher = batcher_of(depth=1)
    entry = batcher.add(200, 9.0, 0, now=0.0)
    batcher.take(0.0)
    batcher.end(entry)
    assert batcher.queue_rows == 0
    assert not entry.is_free
    batcher.finished(0, 0.01, 0.01)
    assert entry.is_free
    assert batcher.take(0.01) is None


def test_expired_queries_are_told_once_they_are():
    batcher = batcher_of()
    first = batcher.add(1, 0.5, 0, now=0.0)
    second = batcher.add(1, 0.7, 0, now=0.0)
    assert batcher.expired(0.4) == []
    assert batcher.expired(0.5) == [first]
    batcher.end(first)
    assert batcher.expired(0.6) == []
    assert batcher.expired(0.8) == [second]


def test_work_of_a_dead_worker_goes_first_and_alone():
    batcher = batcher_of(num_workers=2)
    for rows in (40, 60, 30):
        batcher.add(rows, 9.0, 0, now=0.0)
    assert spans(batcher.take(0.0)) == [(1, 0, 40), (2, 0, 60)]
    assert batcher.entries_of(0)[0].parts_running == 1
    assert batcher.lost(0) == []
    assert batcher.entries_of(0) == []
    again = batcher.take(0.1)
    assert (again.worker, spans(again), again.reason) == (1, [(1, 0, 40)], "retry")
    batcher.finished(1, 0.2, 0.01)
    assert spans(batcher.take(0.2)) == [(2, 0, 60)]
    batcher.finished(1, 0.3, 0.01)
    assert spans(batcher.take(0.3)) == [(3, 0, 30)]


def test_what_kills_two_workers_is_not_tried_again():
    batcher = batcher_of(num_workers=2)
    poison = batcher.add(40, 9.0, 0, now=0.0)
    batcher.take(0.0)
    assert batcher.lost(0) == []
    assert batcher.take(0.0).worker == 1
    assert batcher.lost(1) == [poison]
    assert batcher.queue_rows == 0


def test_a_batch_sent_ahead_of_a_death_was_not_its_cause():
    batcher = batcher_of(num_workers=1)
    for _ in range(2):
        batcher.add(100, 9.0, 0, now=0.0)
        batcher.take(0.0)
    assert batcher.running(0) == 2
    for round_s in (1.0, 2.0):
        batcher.open(0)
        failed = batcher.lost(0) if round_s == 1.0 else []
        assert failed == []
    batcher.open(0)
    first, second = batcher.take(1.0), batcher.take(1.0)
    assert [b.parts[0].is_retried for b in (first, second)] == [True, False]


def test_a_worker_that_takes_too_long_has_hung():
    batcher = batcher_of(num_workers=2, hang_timeout_s=1.0)
    batcher.add(1, 99.0, 0, now=5.0)
    batcher.take(5.0)
    assert batcher.hung(5.9) == []
    assert batcher.hung(6.1) == [0]


def test_no_batch_goes_to_a_closed_worker():
    batcher = batcher_of(num_workers=2)
    batcher.close(0)
    batcher.add(1, 9.0, 0, now=0.0)
    assert batcher.take(0.0).worker == 1


@pytest.mark.parametrize("num_workers", [1, 2, 8])
@pytest.mark.parametrize("depth", [1, 2])
def test_twice_the_load_keeps_nine_tenths_of_the_goodput_and_every_promise(num_workers, depth):
    """Poisson arrivals of 60 rows, batches of 2 ms + 50 us a row with 10 % noise, 50 ms to answer.

    A batch holds 120 rows, so it takes 8 ms: a worker can answer 250 such queries a second.
    """
    draw = random.Random(5)
    capacity_qps = 250 * num_workers
    now, arrivals = 0.0, []
    while now < 6.0:
        now += draw.expovariate(2 * capacity_qps)
        arrivals.append(Arrival(now, 60, 0.05))
    batcher = batcher_of(
        num_workers,
        [(1, 0.003), (128, 0.009)],
        max_batch_rows=128,
        depth=depth,
        max_queue_rows=10**5,
    )
    simulation = Simulation(
        batcher, num_workers, lambda rows: (0.002 + 50e-6 * rows) * draw.uniform(0.9, 1.1)
    )
    simulation.run(arrivals)
    settled = [o for o in simulation.outcomes if 1.0 <= o.arrival.at_s < 6.0]
    answered = [o for o in settled if o.how == "answered"]
    in_time = [o for o in answered if o.at_s <= o.arrival.at_s + 0.05]
    accepted = [o for o in settled if o.how != "refused"]
    assert len(in_time) >= 0.9 * 5.0 * capacity_qps
    assert len(in_time) >= 0.97 * len(accepted)
    assert simulation.most_rows <= 0.05 * capacity_qps * 60 * 1.2  # no more than can be in time
