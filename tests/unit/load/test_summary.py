"""What a run's samples say: percentiles of a known queue, verdicts, what makes a run invalid."""

import msgspec
import numpy as np
import pytest

from fastdlrm.load.plan import Plan, schedule_of
from fastdlrm.load.result import LoadResult
from fastdlrm.load.samples import BROKEN, UNFINISHED, Samples
from fastdlrm.load.summary import Generator, summarise
from tests.queueing import fifo_done, md1_latency, md1_waits_at_most


def plan_of(**changes):
    fields = {"url": "http://h:1", "model": "m", "rate": 100.0, "warmup_s": 1.0, "duration_s": 9.0}
    return Plan(**{**fields, **changes})


def samples_of(times, latency_s, status=200, late_s=0.0, size=1):
    times = np.asarray(times, float)
    whole = np.broadcast_to
    status = whole(np.asarray(status, np.int16), times.shape)
    done = np.where(status == UNFINISHED, np.nan, times + latency_s)
    return Samples(times, times + late_s, done, status, whole(np.int64(size), times.shape))


def even(rate=100, total_s=10):
    """Arrivals between the multiples of a gap: none lies on an edge of the measured time."""
    return (np.arange(rate * total_s) + 0.5) / rate


def test_the_formula_of_the_queue_is_right():
    """P[no wait] = 1 - rho. rho = 1/2: P[wait <= D] = (1 - rho) e^(rho) = 0.8244."""
    assert md1_waits_at_most(0.5, 1.0, 0.0) == pytest.approx(0.5)
    assert md1_waits_at_most(0.5, 1.0, 1 - 1e-9) == pytest.approx(0.82436, abs=1e-4)
    # Mean wait of Pollaczek-Khinchine, rho D / (2 (1 - rho)) = 0.5, as the integral of the tail.
    grid = np.arange(0, 12, 0.01) + 0.005
    tail = [1 - md1_waits_at_most(0.5, 1.0, t) for t in grid]
    assert sum(tail) * 0.01 == pytest.approx(0.5, rel=2e-3)


def test_a_queues_percentiles_are_those_of_the_formula():
    """10 ms of service at 80 queries/s, rho = 0.8: two million queries on a simulated clock.

    Queries depend on each other over some 100 others: p99 is known to 0.7 %, p99.9 to 2 %."""
    plan = plan_of(rate=80.0, warmup_s=10.0, duration_s=25_000.0, seed=4)
    schedule = schedule_of(plan)
    done = fifo_done(schedule.times_s, 0.010)
    times = schedule.times_s
    status = np.full(len(times), 200, np.int16)
    result = summarise(Samples(times, times, done, status, schedule.sizes), plan)
    assert result.num_queries == pytest.approx(2e6, rel=0.01)
    for level, found in ((50, "p50"), (90, "p90"), (95, "p95"), (99, "p99")):
        expected = md1_latency(80, 0.010, level) * 1e3
        assert getattr(result.latency_ms, found) == pytest.approx(expected, rel=0.02), level
    assert result.all_latency_ms == result.latency_ms.p99
    # Mean of wait and service: 10 ms + 0.8 * 10 / (2 * 0.2) = 30 ms.
    assert result.latency_ms.mean == pytest.approx(30, rel=0.02)
    assert not result.backlog.is_growing
    # Little: 80/s * 30 ms = 2.4 in the system.
    assert result.backlog.at_end == pytest.approx(2.4, rel=0.15)


def test_counts_and_rates():
    plan = plan_of()
    status = np.full(1000, 200)
    status[150:170] = 503
    status[170:175] = BROKEN
    status[175:178] = UNFINISHED
    status[:50] = 500  # in the warm-up: not counted
    result = summarise(samples_of(even(), 0.02, status, size=30), plan)
    assert (result.num_queries, result.num_answered, result.num_unfinished) == (900, 872, 3)
    assert result.failures == {"connection failed": 5, "HTTP 503": 20}
    assert result.planned_qps == result.sent_qps == 100
    # Two answers of the warm-up come in the measured time, those of its last two queries after it.
    assert result.answered_qps == pytest.approx(872 / 9)
    assert result.answered_samples_per_s == pytest.approx(872 * 30 / 9)
    assert result.mean_size == 30
    assert result.latency_ms.p50 == result.service_ms.p50 == pytest.approx(20)
    # 28 of 900 are lost, more than 1 %: no percentile above the 96.8th exists.
    assert result.all_latency_ms is None
    assert summarise(samples_of(even(), 0.02, status), plan_of(percentile=95.0)).all_latency_ms
    assert result.is_valid
    assert [second.num_queries for second in result.seconds] == [100] * 9
    assert result.seconds[0].num_answered == 72
    assert result.histogram_us == ((20095, 872),)


def test_latency_counts_from_the_schedule():
    """Sent 300 ms late, answered 20 ms after that: latency 320 ms, service 20 ms."""
    result = summarise(samples_of(even(), 0.32, late_s=0.3), plan_of(max_lateness_ms=1000.0))
    assert result.latency_ms.p50 == pytest.approx(320)
    assert result.service_ms.p50 == pytest.approx(20)
    assert result.lateness_ms.p99 == pytest.approx(300)


@pytest.mark.parametrize(
    ("changes", "limit_ms"),
    [({}, 0.5), ({"sla_ms": 20.0}, 0.5), ({"sla_ms": 400.0}, 4), ({"max_lateness_ms": 0.1}, 0.1)],
)
def test_a_late_generator_makes_a_run_invalid(changes, limit_ms):
    plan = plan_of(**changes)
    late_s = np.zeros(1000)
    late_s[-9:] = 2 * limit_ms / 1e3  # 9 of 900: p99 is in time
    assert summarise(samples_of(even(), 0.1, late_s=late_s), plan).is_valid
    late_s[-10:] = 2 * limit_ms / 1e3
    result = summarise(samples_of(even(), 0.1, late_s=late_s), plan)
    assert not result.is_valid
    assert f"p99 {2 * limit_ms:.3f} ms after their time, {limit_ms:.3f} ms" in result.invalid[0]


def test_the_advice_says_what_was_short():
    def advice(**generator):
        found = Generator(**generator)
        samples = samples_of(even(), 0.1, late_s=0.05)
        return summarise(samples, plan_of(), found).invalid[0]

    assert "12 of them waited for one of 2048 connections" in advice(num_waited=12)
    assert "raise processes" in advice(cpu_share=0.9)
    assert "a core of its own" in advice()


def test_queries_that_were_never_sent_make_a_run_invalid():
    samples = samples_of(even(), 0.02)
    sent = samples.sent_s.copy()
    sent[-30:] = np.nan
    result = summarise(msgspec.structs.replace(samples, sent_s=sent), plan_of())
    assert "870 of 900 planned queries were sent, 98% is the least" in result.invalid[1]
    # Late by what was left of the run: to its end at 10 s, and 5 s of drain.
    assert result.lateness_ms.max == pytest.approx(5295)


def test_no_query_is_no_valid_run():
    assert summarise(samples_of([], 0.0), plan_of()).invalid == ("no query was measured",)


@pytest.mark.parametrize(
    ("num", "over", "percentile", "outcome"),
    [
        # Early stopping's table, section 4 of MLPerf's rules: 459 without, 662 with one over.
        (459, 0, 99.0, "met"),
        (458, 0, 99.0, "undecided"),
        (662, 1, 99.0, "met"),
        (661, 1, 99.0, "undecided"),
        (398, 10, 95.0, "met"),
        (397, 10, 95.0, "undecided"),
        (398, 36, 95.0, "missed"),
    ],
)
def test_an_sla_is_met_only_where_that_is_shown(num, over, percentile, outcome):
    status = np.full(num, 200)
    times = 1.0 + (np.arange(num) + 0.5) * 9 / num
    latency = np.full(num, 0.010)
    latency[:over] = 0.030
    plan = plan_of(sla_ms=20.0, percentile=percentile)
    sla = summarise(samples_of(times, latency, status), plan).sla
    assert (sla.outcome, sla.num_queries, sla.num_over) == (outcome, num, over)
    status[:over] = 503  # a refused query is over it too, whatever its time
    assert summarise(samples_of(times, 0.01, status), plan).sla == sla


def test_sixty_four_queries_prove_no_p95():
    """The DeepRecSys controller takes p95 of 64 queries: the 61st of them in order. Fewer than 90
    show nothing, even if all are within the SLA, and the run says so."""
    times = 1.0 + (np.arange(64) + 0.5) * 9 / 64
    result = summarise(samples_of(times, 0.001), plan_of(sla_ms=20.0, percentile=95.0))
    assert result.sla.outcome == "undecided"
    assert result.sla.fewest_queries == 90
    assert (
        "64 queries are too few for p95 with confidence 0.99; it takes 90 and more" in result.notes
    )


def test_a_growing_backlog_is_seen():
    """Service at 90/s of arrivals at 100/s: 10 more wait each second; the latency grows to 1 s."""
    times = even()
    done = fifo_done(times, 1 / 90)
    result = summarise(samples_of(times, done - times), plan_of())
    assert result.backlog.is_growing
    # At 1 + 9 / 3 = 4 s 40 wait, in the last tenth of 9 s some 96.
    assert result.backlog.at_third == pytest.approx(40, abs=3)
    assert result.backlog.at_end == pytest.approx(96, abs=3)
    assert "the backlog grew to the end: latency depends on the length of the run" in result.notes


def test_a_closed_loop_says_so():
    plan = plan_of(rate=None, closed=4, warmup_s=1.0)
    result = summarise(samples_of(even(), 0.02), plan)
    assert result.loop == "closed loop"
    assert (result.planned_qps, result.lateness_ms, result.backlog) == (None, None, None)
    assert result.notes[0].startswith(
        "closed loop of 4 queries in flight: the server sets the rate"
    )


def test_the_references_arrivals_are_noted():
    result = summarise(samples_of(even(), 0.02), plan_of(arrivals="reference_poisson_ms"))
    assert "arrivals are smoother than a Poisson process: latencies are too low" in result.notes


def test_columns_that_are_not_sent_are_noted():
    generator = Generator(unused_columns=("label",))
    notes = summarise(samples_of(even(), 0.02), plan_of(), generator).notes
    assert notes[-1].startswith("the model takes no label: not sent")


def test_a_result_is_json():
    status = np.full(1000, 200)
    status[150:] = 503
    result = summarise(samples_of(even(), 0.02, status), plan_of(sla_ms=20.0))
    assert msgspec.json.decode(msgspec.json.encode(result), type=LoadResult) == result


def test_a_trace_ends_what_is_measured():
    plan = plan_of(rate=None, arrivals="trace", trace="t", duration_s=1000.0)
    result = summarise(samples_of(even(), 0.02), plan)
    assert result.planned_qps == pytest.approx(100, rel=0.01)
