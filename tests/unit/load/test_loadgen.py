"""LoadGen over HTTP: its summary, its runs, and its agreement with the generator."""

import sys

import numpy as np
import pytest

from fastdlrm.errors import ConfigError, LoadError
from fastdlrm.load.loadgen import read_summary, run_loadgen
from fastdlrm.load.loadgen_process import Counts
from fastdlrm.load.plan import Plan
from fastdlrm.load.run import run
from fastdlrm.load.samples import Samples
from tests.stub_server import stub_server

SUMMARY = """
================================================
MLPerf Results Summary
================================================
SUT name : fastdlrm load
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 194.81
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Would need to run at least 12902 more queries,

================================================
Additional Stats
================================================
Scheduled samples per second : 194.93
Min latency (ns)                : 2257340
50.00 percentile latency (ns)   : 3183413
99.00 percentile latency (ns)   : 273584371
99.90 percentile latency (ns)   : 303690945
"""


def plan_of(url="http://h:1", **changes):
    fields = {"url": url, "model": "m", "rate": 200.0, "sizes": "fixed:10", "sla_ms": 100.0}
    return Plan(**{**fields, "duration_s": 4.0, **changes})


def test_a_summary_is_read():
    result = read_summary(SUMMARY, plan_of(), Counts(782, 0))
    assert (result.scenario, result.is_valid) == ("Server", False)
    assert (result.planned_qps, result.samples_per_s) == (194.93, 194.81)
    assert result.latency_ms == ((50, 3.183413), (99, 273.584371), (99.9, 303.690945))
    assert result.invalid == (
        "LoadGen says INVALID",
        "Performance constraints satisfied : NO",
        "Early stopping satisfied: NO",
        "Reduce target QPS to improve latency.",
        "Would need to run at least 12902 more queries,",
    )


def test_failed_queries_make_a_valid_run_invalid():
    valid = SUMMARY.replace("Result is : INVALID", "Result is : VALID")
    assert read_summary(valid, plan_of(), Counts(782, 0)).is_valid
    result = read_summary(valid, plan_of(), Counts(782, 3))
    assert not result.is_valid
    assert result.invalid == ("3 queries got no scores, which LoadGen does not know",)


def test_a_summary_of_an_offline_run_has_other_words():
    text = "Scenario : Offline\nSamples per second: 498.223\nResult is : VALID\n"
    result = read_summary(text, plan_of(), Counts(880, 0))
    assert (result.samples_per_s, result.planned_qps, result.num_queries) == (498.223, None, 880)


def test_what_is_refused(monkeypatch):
    with pytest.raises(LoadError, match="summary holds no result: 'nothing'"):
        read_summary("nothing", plan_of(), Counts(0, 0))
    with pytest.raises(ConfigError, match="scenario 'best': server, offline is allowed"):
        run_loadgen(plan_of(), "best")
    with pytest.raises(ConfigError, match="LoadGen with rate None and arrivals 'exponential'"):
        run_loadgen(plan_of(rate=None, closed=4))
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    monkeypatch.setattr("fastdlrm.load.loadgen.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"LoadGen is not installed; pip install 'fastdlrm\[load"):
        run_loadgen(plan_of())


def test_loadgen_runs_twice_in_one_process(tmp_path):
    """Each run with its own settings: LoadGen itself keeps those of the first in a process."""
    pytest.importorskip("mlperf_loadgen")
    with stub_server(service_ms=1) as url:
        first = run_loadgen(plan_of(url, duration_s=1.0), folder=tmp_path)
        second = run_loadgen(plan_of(url, rate=100.0, duration_s=0.5, sla_ms=7.0))
        offline = run_loadgen(plan_of(url, rate=900.0, duration_s=0.5), "offline")
    assert first.planned_qps == pytest.approx(200, rel=0.3)
    assert "target_latency (ns): 100000000" in first.summary
    assert second.planned_qps == pytest.approx(100, rel=0.4)
    assert "target_latency (ns): 7000000" in second.summary
    assert "min_duration (ms): 500" in second.summary
    assert offline.scenario == "Offline"
    assert offline.samples_per_s == pytest.approx(1000, rel=0.3)
    samples = Samples.read(tmp_path / "samples.arrow")
    assert len(samples.size) == first.num_queries
    assert first.num_failed == 0
    assert set(samples.size.tolist()) == {10}


def test_refused_queries_are_counted():
    pytest.importorskip("mlperf_loadgen")
    with stub_server(service_ms=20, max_queue=1) as url:
        result = run_loadgen(plan_of(url, duration_s=1.0))
    assert result.num_failed > 50
    assert "queries got no scores, which LoadGen does not know" in result.invalid[-1]


@pytest.mark.slow
def test_loadgen_and_the_generator_agree(tmp_path):
    """The arrivals that LoadGen drew are replayed: p99 of both within 5 %."""
    pytest.importorskip("mlperf_loadgen")
    with stub_server(service_ms=8) as url:
        theirs = run_loadgen(plan_of(url, rate=75.0, duration_s=30.0), folder=tmp_path)
        issued = Samples.read(tmp_path / "samples.arrow").scheduled_s
        trace = tmp_path / "trace"
        trace.write_text("".join(f"{time:.9f}\n" for time in np.sort(issued)))
        ours = run(
            plan_of(
                url,
                rate=None,
                arrivals="trace",
                trace=str(trace),
                warmup_s=0.0,
                duration_s=100.0,
                max_lateness_ms=50.0,
            )
        )
    of = dict(theirs.latency_ms)
    assert ours.num_queries == theirs.num_queries
    assert ours.latency_ms.p50 == pytest.approx(of[50.0], rel=0.05)
    assert ours.latency_ms.p99 == pytest.approx(of[99.0], rel=0.05)
