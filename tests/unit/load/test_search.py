"""The search: capacity of a known queue on a simulated clock, and what lets a probe fail."""

import msgspec
import numpy as np
import pytest

from fastdlrm.contracts.latency_bounded import Probe
from fastdlrm.errors import ConfigError, LoadError
from fastdlrm.load.plan import Plan, schedule_of
from fastdlrm.load.samples import Samples
from fastdlrm.load.search import judge, qps_at_sla, search, search_result
from fastdlrm.load.summary import summarise
from tests.queueing import fifo_done, md1_latency, md1_rate
from tests.stub_server import stub_server

SERVICE_S, SLA_S = 0.005, 0.025


def plan_of(**changes):
    fields = {"url": "http://h:1", "model": "m", "rate": 100.0, "sla_ms": SLA_S * 1e3}
    return Plan(**{**fields, "sizes": "fixed:10", **changes})


def simulated(rate, seed, *, late_above=np.inf, refused=0, percentile=99.0, num=100_000):
    """A run against the queue, without a server."""
    plan = plan_of(rate=rate, seed=seed, duration_s=num / rate, percentile=percentile)
    schedule = schedule_of(plan)
    times = schedule.times_s
    done = fifo_done(times, SERVICE_S)
    status = np.full(len(times), 200, np.int16)
    status[len(times) - refused :] = 503
    sent = times + (0.01 if rate > late_above else 0.0)
    return summarise(Samples(times, sent, done, status, schedule.sizes), plan)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_capacity_of_a_queue(seed):
    """M/D/1 with 5 ms of service: the rate whose p99 is 25 ms, by the formula some 145/s."""
    capacity = md1_rate(SERVICE_S, SLA_S, 99)
    assert md1_latency(capacity, SERVICE_S, 99) == pytest.approx(SLA_S, rel=1e-6)
    rate, probes = qps_at_sla(simulated, start_rate=50, seed=100 * seed, tolerance=0.01)
    assert rate == pytest.approx(capacity, rel=0.03)
    assert max(probe.rate for probe in probes if probe.passed) == rate
    assert len({probe.seed for probe in probes}) == len(probes)


@pytest.mark.parametrize("start", [1.0, 149.0, 5000.0])
def test_the_search_starts_anywhere(start):
    """A p95 of 25 ms asks for other rates than a p99."""
    capacity = md1_rate(SERVICE_S, SLA_S, 95)
    rate, _ = qps_at_sla(lambda r, s: simulated(r, s, percentile=95.0), start_rate=start, seed=1)
    assert rate == pytest.approx(capacity, rel=0.03)


def test_a_probe_says_why_it_did_not_pass():
    assert judge(100, 0, simulated(100, 0)).passed
    over = judge(160, 0, simulated(160, 0))
    assert "over 25 ms: missed" in over.why
    assert not over.by_generator
    assert judge(100, 0, simulated(100, 0, refused=1)).why == "1 HTTP 503"
    few = judge(100, 0, simulated(100, 0, num=300))
    assert few.why.endswith("over 25 ms: undecided")
    full = judge(260, 0, simulated(260, 0, num=3000))
    assert full.why.startswith("answered ")
    late = judge(100, 0, simulated(100, 0, late_above=99))
    assert late.by_generator
    assert "queries were sent late" in late.why


def test_a_growing_backlog_does_not_pass():
    """Arrivals at 204/s of 200/s: nearly all are answered in the measured time, but more and more
    wait."""
    result = simulated(204, 0, num=100_000)
    result = msgspec.structs.replace(result, answered_qps=result.planned_qps)
    assert judge(204, 0, result).why.startswith("backlog grew from")


def test_connections_that_ran_out_are_the_servers_doing():
    late = simulated(100, 0, late_above=99)
    waited = msgspec.structs.replace(late, num_waited=5)
    assert not judge(100, 0, waited).by_generator
    assert not judge(100, 0, waited).passed


def test_a_rate_that_the_generator_bounds_is_not_valid():
    plan = plan_of()
    rate, probes = qps_at_sla(lambda r, s: simulated(r, s, late_above=100), start_rate=50)
    assert 97 < rate <= 100
    # Each rate at which the generator was late is tried twice.
    assert sum(probe.by_generator for probe in probes) % 2 == 0
    result = search_result(plan, [rate], probes, 0.02)
    assert not result.is_valid
    assert "it was the generator that could not: queries were sent late" in result.invalid[0]
    fine, probes = qps_at_sla(simulated, start_rate=50)
    assert search_result(plan, [fine], probes, 0.02).is_valid


def test_no_rate_passes():
    """From 10/s down by 1.5: 10 / 1.5^5 = 1.32; the next, 0.88, is below what is allowed."""
    rate, probes = qps_at_sla(
        lambda r, s: simulated(r, s, refused=1, num=500), start_rate=10, least_rate=1.0
    )
    assert rate == 0
    assert len(probes) == 6
    result = search_result(plan_of(), [rate], probes, 0.02)
    assert result.invalid == ("no rate passed, down to 1.32/s",)
    assert result.qps_at_sla == 0


def test_repeats_give_their_median():
    result = search_result(plan_of(sizes="fixed:10"), [100.0, 130.0, 110.0], [], 0.02)
    assert result.qps_at_sla == 110
    assert result.samples_per_s_at_sla == 1100
    assert result.repeats == (100, 130, 110)


def test_each_probe_is_told():
    told: list[Probe] = []
    _, probes = qps_at_sla(lambda r, s: simulated(r, s, num=3000), start_rate=50, told=told.append)
    assert told == probes


def test_a_run_that_cannot_be_judged_is_refused():
    result = simulated(100, 0, num=2000)
    with pytest.raises(LoadError, match="without an SLA, or a closed loop, cannot be judged"):
        judge(100, 0, msgspec.structs.replace(result, sla=None))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"sla_ms": None}, {}, "search with sla_ms None and arrivals 'exponential'"),
        ({"arrivals": "trace", "trace": "t"}, {}, "and arrivals 'trace': it takes an SLA"),
        ({}, {"repeats": 0}, "repeats 0 and tolerance 0.02: 1 and more"),
        ({}, {"tolerance": 1.0}, "repeats 1 and tolerance 1"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(changes, arguments, message):
    with pytest.raises(ConfigError, match=message):
        search(plan_of(**changes), **arguments)


def test_a_search_needs_an_answer_to_begin_with():
    plan = plan_of(rate=None, closed=1, drain_s=0.1)
    with (
        stub_server(refuse="no", refuse_after=1) as url,
        pytest.raises(LoadError, match=r"no answer in a closed loop of 4 s \(\{'HTTP 400': "),
    ):
        search(msgspec.structs.replace(plan, url=url))


@pytest.mark.slow
def test_a_search_of_a_real_server():
    """8 ms of service over real connections, p95 within 40 ms, finds what a simulated clock finds
    for the same schedules. Probes of 12 s hold too few queries to find the formula's 87/s."""
    plan = plan_of(
        rate=60.0,
        sla_ms=40.0,
        percentile=95.0,
        duration_s=12.0,
        warmup_s=1.0,
        max_lateness_ms=20.0,
    )

    def simulate(rate, seed):
        probe = msgspec.structs.replace(plan, rate=rate, seed=seed)
        times, sizes = (schedule := schedule_of(probe)).times_s, schedule.sizes
        status = np.full(len(times), 200, np.int16)
        return summarise(Samples(times, times, fifo_done(times, 0.008), status, sizes), probe)

    expected, _ = qps_at_sla(simulate, start_rate=60.0, tolerance=0.05)
    with stub_server(service_ms=8) as url:
        result = search(msgspec.structs.replace(plan, url=url), tolerance=0.05)
    assert result.is_valid
    assert result.qps_at_sla == pytest.approx(expected, rel=0.06)
    assert result.samples_per_s_at_sla == pytest.approx(10 * result.qps_at_sla)
