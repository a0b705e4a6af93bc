"""Runs against a server of planted behaviour, over real connections."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdlrm.errors import ConfigError, DataError, LoadError
from fastdlrm.load.plan import Plan, schedule_of
from fastdlrm.load.run import Crew, run
from fastdlrm.load.samples import Samples
from fastdlrm.load.summary import summarise
from fastdlrm.stats import percentile
from tests.queueing import fifo_done
from tests.stub_server import answered_at, stub_server

# A shared machine sends late at times: what these tests look at does not depend on it.
LENIENT = 1000.0


@pytest.fixture(scope="module")
def quick():
    """A server that answers at once, and one query after the other in 1 ms."""
    with stub_server(service_ms=1) as url:
        yield url


def plan_of(url, **changes):
    fields = {"url": url, "model": "m", "rate": 200.0, "sizes": "fixed:10", "warmup_s": 0.2}
    return Plan(
        **{**fields, "duration_s": 1.0, "drain_s": 2.0, "max_lateness_ms": LENIENT, **changes}
    )


def test_a_run_sends_its_schedule(quick, tmp_path):
    plan = plan_of(quick, seed=2)
    path = tmp_path / "samples.arrow"
    result = run(plan, samples=path)
    schedule = schedule_of(plan)
    samples = Samples.read(path)
    assert samples.scheduled_s == pytest.approx(schedule.times_s, abs=1e-6)
    assert samples.size.tolist() == schedule.sizes.tolist()
    assert (samples.status == 200).all()
    assert (samples.sent_s >= samples.scheduled_s).all()
    assert (samples.done_s - samples.sent_s >= 0.001).all()
    measured = schedule.times_s >= 0.2
    assert result.is_valid
    assert result.num_queries == result.num_answered == measured.sum()
    assert result.planned_qps == result.sent_qps == measured.sum()
    assert result.answered_samples_per_s == pytest.approx(10 * result.answered_qps)
    assert result.num_example_rows == 3
    latency = (samples.done_s - samples.scheduled_s)[measured] * 1e3
    assert result.latency_ms.p99 == pytest.approx(percentile(latency, 99))


def test_processes_share_the_schedule(quick, tmp_path):
    plan = plan_of(quick, processes=2, sizes="production")
    path = tmp_path / "samples.arrow"
    result = run(plan, samples=path)
    samples, schedule = Samples.read(path), schedule_of(plan)
    assert samples.scheduled_s == pytest.approx(schedule.times_s, abs=1e-6)
    assert samples.size.tolist() == schedule.sizes.tolist()
    assert result.num_answered == result.num_queries


def test_a_stall_of_the_server_is_seen_by_all_who_arrive_in_it():
    """200 ms of standstill at 200 queries/s: 40 queries arrive in it, and the first of them waits
    200 ms, the middle one 100 ms. A generator that waits for answers, or for room in a queue,
    sends few of them and reports one slow query: coordinated omission."""
    with (
        stub_server(service_ms=0.2, stall_at_query=200, stall_ms=200) as url,
        Crew(plan := plan_of(url, arrivals="uniform", duration_s=2.5)) as crew,
    ):
        samples, _ = crew.measure(plan)
    latency_ms = (samples.done_s - samples.scheduled_s) * 1e3
    assert (samples.status == 200).all()
    assert 15 <= (latency_ms > 100).sum() <= 25
    assert 28 <= (latency_ms > 50).sum() <= 50
    assert latency_ms.max() > 190
    # All of them were sent while the server stood still, not after it.
    slow = latency_ms > 100
    assert np.ptp(samples.sent_s[slow]) > 0.05
    service_ms = (samples.done_s - samples.sent_s) * 1e3
    assert (service_ms > 100).sum() >= 10


def test_an_overload_is_sent_as_planned():
    """Twice what the server takes: all is sent on time, the server refuses what it cannot."""
    with stub_server(service_ms=10, max_queue=5) as url:
        result = run(plan_of(url, rate=200.0, duration_s=2.0, sla_ms=100.0))
    assert result.sent_qps == result.planned_qps
    assert result.answered_qps == pytest.approx(100, rel=0.15)
    refused = result.failures["HTTP 503"]
    assert refused + result.num_answered == result.num_queries
    assert result.sla.outcome == "missed"
    assert result.sla.num_over >= refused
    # Seven in the system at most, 10 ms each.
    assert result.latency_ms.p50 < 90


def test_a_server_without_time_is_measured_all_the_same():
    with stub_server(max_queue=-1) as url:
        result = run(plan_of(url, timeout_ms=1.0))
    assert result.failures == {"HTTP 503": result.num_queries}
    assert result.latency_ms is None


def test_the_generators_priority_is_told(quick):
    plan = plan_of(quick)
    with Crew(plan) as crew:
        result = crew.run(plan)
        (process,) = multiprocessing.active_children()
        is_real_time = os.sched_getscheduler(process.pid) == os.SCHED_RR
    assert result.priority == ("real time" if is_real_time else "normal")


def test_a_queue_that_grows_is_seen():
    with stub_server(service_ms=10) as url:
        result = run(plan_of(url, rate=200.0, duration_s=2.0, drain_s=0.3, sla_ms=100.0))
    assert result.backlog.is_growing
    assert result.num_unfinished > 50
    assert result.sla.num_over > result.num_unfinished
    assert result.all_latency_ms is None


def test_connections_that_run_out_make_a_run_invalid():
    with stub_server(service_ms=10) as url:
        result = run(
            plan_of(url, rate=200.0, duration_s=2.0, max_connections=40, max_lateness_ms=None)
        )
    assert result.num_connections <= 40
    assert result.num_waited > 50
    assert not result.is_valid
    assert "waited for one of 40 connections" in result.invalid[0]


@pytest.mark.parametrize(
    ("behaviour", "failures", "num_unfinished"),
    [
        ({"drop_every": 10}, {"connection failed": 20}, 0),
        ({"silent_every": 10}, {}, 20),
        ({"close_every": 3}, {}, 0),
    ],
)
def test_connections_that_break(behaviour, failures, num_unfinished):
    with stub_server(service_ms=0.1, **behaviour) as url:
        result = run(plan_of(url, arrivals="uniform", warmup_s=0.0, duration_s=1.0, drain_s=0.5))
    assert result.num_queries == 200
    assert result.num_unfinished == num_unfinished
    assert result.failures == failures
    assert result.num_answered == 200 - num_unfinished - sum(failures.values())


def test_a_server_that_goes_away_ends_no_run():
    with stub_server(service_ms=0.1) as url:
        plan = plan_of(url, duration_s=2.0, drain_s=0.3)
        crew = Crew(plan)
    with crew, pytest.raises(LoadError, match=r"no answer|no connection"):
        crew.run(plan)


def test_a_closed_loop_keeps_so_many_in_flight(quick):
    """One server, 1 ms each: four in flight wait 4 ms, and 1000 a second are answered."""
    result = run(plan_of(quick, rate=None, closed=4, duration_s=1.0))
    assert result.loop == "closed loop"
    assert result.answered_qps == pytest.approx(1000, rel=0.25)
    assert result.latency_ms.p50 == pytest.approx(4, rel=0.25)
    assert result.planned_qps is None
    assert result.num_unfinished == 0


def test_a_trace_is_replayed(quick, tmp_path):
    trace = tmp_path / "trace"
    trace.write_text("".join(f"{5 + k * 0.02} {k % 3 + 1}\n" for k in range(60)))
    plan = plan_of(quick, rate=None, arrivals="trace", trace=str(trace))
    path = tmp_path / "samples.arrow"
    result = run(plan, samples=path)
    samples = Samples.read(path)
    assert samples.scheduled_s == pytest.approx(np.arange(60) * 0.02, abs=1e-6)
    assert samples.size[:4].tolist() == [1, 2, 3, 1]
    assert result.num_queries == 50
    assert result.planned_qps == pytest.approx(50, rel=0.03)


@pytest.mark.parametrize("body", ["json", "rank"])
def test_other_bodies(quick, body):
    result = run(plan_of(quick, body=body, duration_s=0.3, timeout_ms=50.0, top_k=3))
    assert result.num_answered == result.num_queries


def test_a_crew_runs_several_plans(quick):
    plan = plan_of(quick, duration_s=0.4)
    with Crew(plan) as crew:
        first = crew.run(plan)
        second = crew.run(msgspec.structs.replace(plan, rate=100.0, seed=5, sizes="heavy"))
        with pytest.raises(LoadError, match="a crew for body 'binary' cannot run 'json'"):
            crew.run(msgspec.structs.replace(plan, body="json"))
    assert first.num_answered == first.num_queries
    assert second.num_answered == second.num_queries
    assert second.mean_size > 20


def test_what_a_server_refuses_ends_a_run_before_it_begins():
    with (
        stub_server(refuse="input 'x': no") as url,
        pytest.raises(
            LoadError, match=r"/v2/models/m/infer: status 400 for 10 rows: input 'x': no"
        ),
    ):
        run(plan_of(url))
    with (
        stub_server(wrong_rows=True) as url,
        pytest.raises(
            LoadError, match=r"10 rows sent, answered outputs of shapes \{'score': \[11\]\}"
        ),
    ):
        run(plan_of(url))


def test_no_server_and_no_model(quick):
    with pytest.raises(LoadError, match=r"no answer .* is the server running there"):
        run(plan_of("http://127.0.0.1:9"))
    with pytest.raises(LoadError, match="/v2/models/other: status 404, not here"):
        run(plan_of(quick, model="other"))


@pytest.mark.parametrize("inputs", [({"name": "x"},), "none"])
def test_a_server_of_another_protocol(inputs):
    with (
        stub_server(inputs=inputs) as url,
        pytest.raises(LoadError, match=r"no metadata of a model .* Open Inference Protocol\?"),
    ):
        run(plan_of(url))


def test_a_generator_process_that_dies_ends_the_run(quick):
    with Crew(plan := plan_of(quick, duration_s=30.0)) as crew:
        (process,) = crew._processes
        threading.Timer(1.0, process.kill).start()
        with pytest.raises(LoadError, match=r"generator process 0 ended \(exit code -9\)"):
            crew.run(plan)


def test_rows_of_a_server_without_examples():
    with stub_server(examples=None) as url:
        with pytest.raises(
            LoadError, match=r"gives no example rows .status 404.*name a file by rows"
        ):
            run(plan_of(url))
        result = run(plan_of(url, rows="random", duration_s=0.3))
    assert result.num_example_rows == 4096
    with stub_server(examples=[]) as url, pytest.raises(LoadError, match="has no example rows"):
        run(plan_of(url))
    with stub_server(examples=[3]) as url, pytest.raises(LoadError, match="no example rows"):
        run(plan_of(url))


def test_rows_of_files(quick, tmp_path):
    table = pa.table({"x": [1.0, 2.0, None, 4.0], "label": [0, 1, 0, 1]})
    arrow, stream, lines = tmp_path / "r.arrow", tmp_path / "s.arrow", tmp_path / "r.jsonl"
    with pa.ipc.new_file(str(arrow), table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(str(stream), table.schema) as writer:
        writer.write_table(table)
    lines.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    pq.write_table(table, tmp_path / "r.parquet")
    for path in (arrow, stream, lines, tmp_path / "r.parquet"):
        result = run(plan_of(quick, rows=str(path), duration_s=0.2))
        assert result.num_example_rows == 4
        assert any("takes no label" in note for note in result.notes)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("r.csv", b"x", ConfigError, "or a file that ends in .arrow, .parquet, .jsonl is allowed"),
        ("r.parquet", b"x", DataError, "no rows can be read"),
        ("r.arrow", b"x", DataError, "no rows can be read"),
        ("r.jsonl", b"{", DataError, "no rows can be read"),
        ("r.jsonl", b"", DataError, "no rows; queries are made of at least one"),
        ("r.jsonl", b'{"y": 1}', DataError, "rows have the columns y, but model 'm' takes x"),
    ],
)
def test_wrong_rows_are_refused(quick, name, content, error, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=re.escape(message)):
        run(plan_of(quick, rows=str(path)))


@pytest.mark.slow
def test_percentiles_are_those_of_the_queue():
    """40 ms of service at 15 queries/s for 40 s. When the server answered each query it says
    itself: that a busy machine delays it is no fault of the generator's."""
    with stub_server(service_ms=40) as url:
        plan = plan_of(url, rate=15.0, warmup_s=2.0, duration_s=40.0, seed=8)
        with Crew(plan) as crew:
            samples, generator = crew.measure(plan)
        answered_s = answered_at(url)[1:] - generator.start_at  # the first was sent to see if it is
    result = summarise(samples, plan, generator)
    assert (samples.done_s > answered_s).all()
    measured = samples.scheduled_s >= 2.0
    truth_ms = (answered_s - samples.scheduled_s)[measured] * 1e3
    assert result.num_answered == len(truth_ms)
    for level, found in ((50, "p50"), (90, "p90"), (95, "p95"), (99, "p99")):
        reported = getattr(result.latency_ms, found)
        assert reported == pytest.approx(percentile(truth_ms, level), rel=0.02)
    # No latency is less than that of the queue for this schedule.
    assert (samples.done_s >= fifo_done(schedule_of(plan).times_s, 0.040)).all()


def test_load_imports_no_torch():
    code = "import sys, fastdlrm.load.search, fastdlrm.load.loadgen; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
