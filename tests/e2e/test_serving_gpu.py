"""A server whose worker computes on a GPU."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from tests.e2e.serving import (
    MODEL,
    Traffic,
    columns_body,
    rows_of,
    scores_of,
    served,
    tiny_export,
    workers_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.xdist_group("serving"),
]
TOLERANCE = 1e-5
"""Of a score in float32: a GPU adds products in another order."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server"
    flags = ("--device", "cuda", "--workers", "1")
    with served(exported.models, log, *flags) as running:
        yield running


def test_golden_rows_score_as_on_the_cpu(exported, server):
    columns, scores = exported.golden()
    answer = server.infer(columns_body(columns))
    assert answer.status == 200, answer.body
    assert np.abs(scores_of(answer) - scores).max() <= TOLERANCE


@pytest.mark.parametrize("num_rows", [1, 7, 100])
def test_few_rows_score_as_many(exported, server, num_rows):
    columns, scores = exported.golden()
    num_rows = min(num_rows, len(scores))
    found = scores_of(server.infer(columns_body(rows_of(columns, 0, num_rows))))
    assert np.abs(found - scores[:num_rows]).max() <= TOLERANCE


def test_requests_at_once(exported, server):
    columns, scores = exported.golden()
    with Traffic(server, columns, num_threads=8) as traffic:
        traffic.wait(200)
    assert not traffic.broken
    for answer in traffic.answers:
        assert answer.status == 200
        assert np.abs(scores_of(answer) - scores).max() <= TOLERANCE


def test_a_killed_worker_comes_back(exported, server):
    columns, scores = exported.golden()
    (worker,) = workers_of(server)
    os.kill(worker, signal.SIGKILL)
    until = time.monotonic() + 60
    while (answer := server.infer(columns_body(columns))).status != 200:
        assert answer.status in (500, 503, 504), answer
        assert time.monotonic() < until, "no worker came back"
        time.sleep(0.05)
    assert np.abs(scores_of(answer) - scores).max() <= TOLERANCE
    assert server.metric("fastdlrm_worker_restarts", model=MODEL) == 1


def test_large_queries_are_offloaded(exported, tmp_path):
    columns, scores = exported.golden()
    half = len(scores) // 2
    flags = ("--workers", "1", "--set", f"offload.min_rows={half}")
    with served(exported.models, tmp_path / "log", *flags) as running:
        assert running.metric("fastdlrm_workers", model=MODEL) == 2
        whole = scores_of(running.infer(columns_body(columns)))
        assert np.abs(whole - scores).max() <= TOLERANCE
        few = scores_of(running.infer(columns_body(rows_of(columns, 0, half - 1))))
        assert np.array_equal(few, scores[: half - 1])  # by the CPU, in every bit
