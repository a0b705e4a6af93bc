import asyncio
import gc

import pytest

from fastdlrm.errors import DeadlineExceeded, NotFound, Overloaded, RequestError, ServeError
from fastdlrm.serve.metrics import GAUGES, Metrics, cause_of


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        (Overloaded("x"), "overloaded"),
        (DeadlineExceeded("x"), "deadline"),
        (NotFound("x"), "not_found"),
        (RequestError("x"), "invalid"),
        (asyncio.CancelledError(), "client_gone"),
        (ServeError("x"), "internal"),
        (ValueError("x"), "internal"),
    ],
)
def test_causes(problem, cause):
    assert cause_of(problem) == cause
    metrics = Metrics()
    metrics.of("shop").failed(problem)
    assert metrics.recent.now.shed == (cause == "overloaded")
    assert metrics.recent.now.missed == (cause == "deadline")
    line = f'fastdlrm_failed_queries_total{{cause="{cause}",model="shop"}} 1.0'
    assert line in metrics.text().decode()


@pytest.mark.parametrize(
    ("route", "code", "errors"),
    [
        ("infer", "200", 0),
        ("infer", "400", 1),
        ("score", "503", 1),
        ("rank", "499", 0),
        ("page", "404", 0),
        ("ModelInfer", "OK", 0),
        ("ModelInfer", "INVALID_ARGUMENT", 1),
        ("ModelInfer", "CANCELLED", 0),
    ],
)
def test_requests_that_brought_no_scores_are_errors(route, code, errors):
    metrics = Metrics()
    metrics.answered("any", route, code)
    assert metrics.recent.now.errors == errors


def test_batches_are_counted_by_why_they_left():
    metrics = Metrics()
    metrics.of("shop").flushed("idle", rows=64, fill=0.25)
    metrics.of("shop").flushed("full", rows=256, fill=1.0)
    text = metrics.text().decode()
    assert 'fastdlrm_batches_total{model="shop",reason="idle"} 1.0' in text
    assert 'fastdlrm_batch_fill_bucket{le="0.3",model="shop"} 1.0' in text
    assert 'fastdlrm_batch_rows_sum{model="shop"} 320.0' in text
    now = metrics.recent.now
    assert (now.batches, now.batch_rows, now.batch_fill) == (2, 320, 1.25)


def test_gauges_are_asked_at_a_scrape():
    metrics = Metrics()
    metrics.gauges = lambda: [("fastdlrm_queue_rows", ("shop",), 12.0)]
    text = metrics.text().decode()
    assert 'fastdlrm_queue_rows{model="shop"} 12.0' in text
    for name, meaning, _ in GAUGES:
        assert f"# HELP {name} {meaning}" in text


def test_pauses_of_the_collector_are_counted():
    metrics = Metrics()
    metrics.watch_gc()
    try:
        gc.collect()
    finally:
        metrics.unwatch_gc()
    assert metrics.gc_pauses.labels("2").count >= 1
    before = metrics.gc_pauses.labels("2").count
    gc.collect()
    assert metrics.gc_pauses.labels("2").count == before
