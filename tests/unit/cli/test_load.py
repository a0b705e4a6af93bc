"""`fastdlrm load` as a user types it."""

import json

import pytest

from fastdlrm.load.samples import Samples
from tests.builders import fastdlrm
from tests.stub_server import stub_server

QUICK = ("--model", "m", "--sizes", "fixed:10", "--warmup", 0.2, "--duration", 1)
LENIENT = ("--max-lateness-ms", 1000)


@pytest.fixture(scope="module")
def url():
    with stub_server(service_ms=1) as found:
        yield found


def test_a_run_prints_rate_lateness_and_latency(url, tmp_path):
    path = tmp_path / "s.arrow"
    text = fastdlrm("load", url, *QUICK, "--rate", 50, "--sla-ms", 20, *LENIENT, "--samples", path)
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert lines["run"].startswith(
        "open loop, exponential arrivals, sizes fixed:10 (mean 10.0), 1 s"
    )
    assert lines["rate"].startswith("planned ")
    assert " sent " in lines["rate"]
    assert "after the schedule (p99 up to 1e+03 ms is allowed)" in lines["lateness"]
    assert lines["latency"].startswith("p50 ")
    assert lines["SLA"].startswith("undecided: p99 within 20 ms, confidence 0.99")
    assert "too few for p99" in lines["note"]
    assert "invalid" not in lines
    assert len(Samples.read(path).size) > 20


def test_an_invalid_run_says_why(url):
    text = fastdlrm("load", url, *QUICK, "--rate", 50, "--max-lateness-ms", 0.001)
    assert "invalid     queries were sent late: p99 " in text


def test_a_closed_loop_is_called_one(url):
    text = fastdlrm("load", url, *QUICK, "--closed", 2)
    assert "closed loop, 2 in flight" in text
    assert "note        closed loop of 2 queries in flight: the server sets the rate" in text
    assert "lateness" not in text.split("note")[0]


def test_json_has_the_plan_and_the_result(url):
    found = json.loads(fastdlrm("load", url, *QUICK, "--rate", 50, *LENIENT, "--json"))
    assert found["plan"]["rate"] == 50
    assert found["loop"] == "open loop"
    assert found["is_valid"]
    assert found["num_answered"] == found["num_queries"]


@pytest.mark.slow
def test_a_search_prints_the_rate(url):
    options = ("--rate", 100, "--sla-ms", 500, "--percentile", 50, *LENIENT)
    text = fastdlrm("load", url, *QUICK, *options, "--search", "--drain", 0.2)
    assert text.startswith("qps_at_sla  ")
    assert "p50 within 500 ms, shown with confidence 0.99, to 2%; open loop" in text


def test_loadgen_runs(url):
    pytest.importorskip("mlperf_loadgen")
    text = fastdlrm("load", url, *QUICK, "--rate", 50, "--loadgen", "server")
    assert text.startswith("LoadGen     Server, ")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--rate", 5, "--closed", 2), 2, "closed and rate (or a trace) exclude each other"),
        ((), 2, "neither rate, trace nor closed; give one of them"),
        (("--rate", 5, "--arrivals", "bursty"), 2, "Invalid enum value 'bursty'"),
        (("--rate", 5, "--header", "x"), 2, "--header 'x': expected 'NAME: VALUE'"),
        (("--rate", 5, "--search"), 2, "search with sla_ms None"),
        (("--search", "--loadgen", "server"), 2, "--search and --loadgen exclude each other"),
        (("--loadgen", "offline"), 2, "--loadgen offline: give --rate"),
        (("--rate", 5, "--rows", "gone.arrow"), 1, "gone.arrow"),
    ],
)
def test_a_users_mistake_is_one_line(url, options, code, message):
    stderr = fastdlrm("load", url, "--model", "m", *options, code=code)
    assert message in stderr
    assert "Traceback" not in stderr
    assert len(stderr.strip().splitlines()) == 1
