"""The reference's generator and controller, and its three flaws, each of which ours has not.

1. Gaps are whole milliseconds, drawn from the Poisson distribution: too regular.
2. A query counts from when the generator got round to sending it, and sleeps drift.
3. A full queue holds the generator up, so that it offers less just when the server is slow.
"""

import msgspec
import numpy as np
import pytest

from fastdlrm.errors import ConfigError, LoadError
from fastdlrm.load import reference
from fastdlrm.load.arrivals import arrival_times
from fastdlrm.load.plan import Plan, schedule_of
from fastdlrm.load.reference import Controller, ReferenceOptions, reference_search
from fastdlrm.load.run import Crew
from fastdlrm.load.samples import Samples
from fastdlrm.load.summary import summarise
from tests.stub_server import stub_server

SHORT = ReferenceOptions(window=8, num_updates=6, num_kept=3)


def plan_of(url="http://h:1", **changes):
    fields = {"url": url, "model": "m", "rate": 1.0, "sizes": "fixed:10", "sla_ms": 50.0}
    fields |= {"arrivals": "reference_poisson_ms", "percentile": 95.0}
    return Plan(**{**fields, **changes})


def test_flaw_1_our_gaps_vary_as_those_of_a_poisson_process():
    """CV at 10 ms: 1 / sqrt(10) = 0.316 of the reference's, 1 of a Poisson process."""
    spread = {}
    for law in ("reference_poisson_ms", "exponential"):
        gaps = np.diff(arrival_times(law, 100, 200, 1))
        spread[law] = gaps.std() / gaps.mean()
    assert spread["reference_poisson_ms"] == pytest.approx(0.316, abs=0.02)
    assert spread["exponential"] == pytest.approx(1, abs=0.03)


def test_flaw_2_our_latency_counts_from_the_schedule():
    """All queries sent 100 ms late and answered 1 ms later: 101 ms, and an invalid run."""
    plan = plan_of(rate=50.0, arrivals="uniform", warmup_s=0.0, duration_s=4.0)
    schedule = schedule_of(plan)
    sent = schedule.times_s + 0.1
    status = np.full(len(sent), 200, np.int16)
    found = summarise(Samples(schedule.times_s, sent, sent + 0.001, status, schedule.sizes), plan)
    assert found.latency_ms.p50 == pytest.approx(101)
    assert found.service_ms.p50 == pytest.approx(1)  # what the reference calls latency
    assert not found.is_valid
    # Times are absolute: no sleep, however long, moves those that follow.
    assert schedule.times_s.tolist() == (np.arange(200) / 50).tolist()


def test_flaw_3_our_generator_is_not_held_up_by_the_server():
    """A server that stands still for half a second. The reference's generator, with room for four
    queries, sends four and stands still too; ours sends what was planned."""
    stall = {"service_ms": 0.1, "stall_at_query": 100, "stall_ms": 500}
    with stub_server(**stall) as url:
        options = msgspec.structs.replace(SHORT, queue=4, num_updates=40)
        reference = reference_search(plan_of(url), options)
    assert reference.held_up_s > 0.1
    with stub_server(**stall) as url:
        plan = plan_of(url, rate=100.0, arrivals="uniform", warmup_s=0.0, duration_s=2.5)
        with Crew(plan) as crew:
            samples, _ = crew.measure(plan)
    late_ms = (samples.done_s - samples.scheduled_s) * 1e3
    assert (late_ms > 100).sum() >= 30  # 40 arrive in the first 400 ms of the standstill


def drive(controller, latency_of_gap):
    while not controller.is_done:
        controller.answered(latency_of_gap(controller.gap_ms))
    return controller


@pytest.mark.parametrize(("least_ms", "found_ms"), [(3.0, 3.0), (8.0, 8.0)])
def test_the_controller_finds_the_gap_of_a_planted_server(least_ms, found_ms):
    """Below a gap the latency is too long: it goes down to it and then back and forth about it.
    Gaps are a factor of 20^(1/49) = 1.063 apart."""
    options = ReferenceOptions()
    done = drive(Controller(50.0, options), lambda gap: 10.0 if gap >= least_ms else 90.0)
    assert len(done.updates) == 128
    assert done.updates[0].gap_ms == pytest.approx(20)
    assert done.found_ms == pytest.approx(found_ms, rel=0.064)


def test_the_controller_stays_within_its_dead_band_and_its_gaps():
    """49 ms is less than 50, but not by 1.1; 10 ms leads to gaps of 1 ms, 90 ms to 20 ms."""
    options = msgspec.structs.replace(SHORT, num_updates=60)
    gaps = {
        latency: drive(Controller(50.0, options), lambda gap, latency=latency: latency)
        .updates[-1]
        .gap_ms
        for latency in (49.0, 10.0, 90.0)
    }
    assert gaps == pytest.approx({49.0: 20, 10.0: 1, 90.0: 20})


def test_a_window_is_judged_by_its_61st_of_64():
    """ceil(0.95 x 64) = 61: three late ones are none too many, four are."""
    for late, percentile_ms in ((3, 1.0), (4, 99.0)):
        controller = Controller(50.0, ReferenceOptions(num_updates=1))
        for k in range(64):
            controller.answered(99.0 if k < late else 1.0)
        assert controller.updates[0].percentile_ms == percentile_ms


def test_a_query_without_scores_is_late():
    controller = Controller(50.0, SHORT)
    for _ in range(8):
        controller.answered(float("inf"))
    assert controller.updates[0].percentile_ms is None
    assert controller.gap_ms == pytest.approx(20)


def test_a_search_of_a_stub():
    told = []
    with stub_server(service_ms=0.5) as url:
        found = reference_search(plan_of(url, sla_ms=5000.0), SHORT, told=told.append)
    assert tuple(told) == found.updates
    assert len(found.updates) == 6
    # Six steps down from 20 ms; the median of the last three is four steps down.
    assert found.qps == pytest.approx(1000 / 20 * 20 ** (4 / 49))
    assert found.samples_per_s == pytest.approx(10 * found.qps)
    assert found.held_up_s == 0
    assert found.sent_qps > 0


@pytest.mark.parametrize(
    "changes", [{"sla_ms": None}, {"arrivals": "exponential"}, {"percentile": 99.0}]
)
def test_what_is_not_the_references_way_is_refused(changes):
    with pytest.raises(ConfigError, match="it takes an SLA, reference_poisson_ms and 95"):
        reference_search(plan_of(**changes))


def test_a_server_that_answers_no_more_ends_the_search(monkeypatch):
    monkeypatch.setattr(reference, "NO_ANSWER_S", 0.3)
    options = msgspec.structs.replace(SHORT, queue=4, num_updates=60)
    with (
        stub_server(service_ms=0.1, silent_every=2) as url,
        pytest.raises(LoadError, match=r"4 queries sent, none answered for 0.3 s; does the server"),
    ):
        reference_search(plan_of(url), options)
    with pytest.raises(LoadError, match="is the server running there"):
        reference_search(plan_of("http://127.0.0.1:9"))
