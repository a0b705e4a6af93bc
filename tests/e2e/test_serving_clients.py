"""Clients that are none of ours: tritonclient over HTTP and gRPC, KServe's SDK, MLPerf LoadGen.

Each runs in a process of its own, with packages of its own, against a server of its own that no
other test disturbs; what it found comes back as JSON.
"""

import sys

import numpy as np
import pytest

from tests.clients.environments import client_python, run_client
from tests.e2e.serving import MODEL, columns_body, rows_of, scores_of

pytestmark = pytest.mark.xdist_group("serving")
NUM_ROWS = 7
INFERENCES = 7
"""Right requests that triton_http.py sends between its two looks at the statistics."""
LOADGEN_QPS, LOADGEN_S = 90, 12
"""LoadGen judges the 99th percentile from some 700 queries on."""


@pytest.fixture(scope="module")
def golden(exported):
    """A few raw rows and what they score."""
    columns, scores = exported.golden()
    return rows_of(columns, 0, NUM_ROWS), scores[:NUM_ROWS].tolist()


@pytest.fixture(scope="module")
def over_http(server, golden):
    python = client_python("triton")
    url = f"127.0.0.1:{server.http_port}"
    return run_client(python, "triton_http.py", {"url": url, "model": MODEL, "columns": golden[0]})


@pytest.fixture(scope="module")
def over_grpc(server, golden):
    python = client_python("triton")
    url = f"127.0.0.1:{server.grpc_port}"
    return run_client(python, "triton_grpc.py", {"url": url, "model": MODEL, "columns": golden[0]})


@pytest.fixture(scope="module")
def by_kserve(server, golden):
    task = {
        "rest": server.url,
        "grpc": f"127.0.0.1:{server.grpc_port}",
        "model": MODEL,
        "columns": golden[0],
    }
    return run_client(client_python("kserve"), "kserve_sdk.py", task)


def test_triton_finds_the_server_over_http(over_http, golden):
    found = over_http
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["unknown_ready"] is False
    assert found["server"]["name"] == "fastdlrm"
    assert {"binary_tensor_data", "statistics", "model_repository"} <= set(
        found["server"]["extensions"]
    )
    assert found["model"]["versions"] == ["1"]
    assert set(golden[0]) <= {tensor["name"] for tensor in found["model"]["inputs"]}
    assert "score" in {tensor["name"] for tensor in found["model"]["outputs"]}
    assert found["config"]["name"] == MODEL
    assert set(golden[0]) <= {tensor["name"] for tensor in found["config"]["input"]}
    assert found["index"] == [{"name": MODEL, "version": "1", "state": "READY"}] or (
        found["index"][0]["name"],
        found["index"][0]["state"],
    ) == (MODEL, "READY")


def test_triton_gets_the_scores_over_http(over_http, golden):
    scores = golden[1]
    assert over_http["scores"] == dict.fromkeys(over_http["scores"], scores)
    assert len(over_http["scores"]) == INFERENCES - 1
    binary = {name for name, is_binary in over_http["headers"].items() if is_binary}
    assert binary == {"binary", "mixed", "gzip", "scheduled", "asynchronous"}
    assert over_http["answer"]["id"] == "q1"
    assert over_http["answer"]["model_version"] == "1"
    order = np.argsort(-np.array(scores), kind="stable")[:3].tolist()
    assert over_http["top"] == [order, [scores[index] for index in order]]


def test_triton_sees_its_requests_counted(over_http, over_grpc):
    assert over_http["counted"] == {"rows": INFERENCES * NUM_ROWS, "success": INFERENCES}
    counted = over_grpc["statistics"]
    assert int(counted["inference_count"]) >= NUM_ROWS
    assert int(counted["inference_stats"]["success"]["ns"]) > 0


def test_triton_is_told_what_is_wrong_over_http(over_http, golden):
    errors = over_http["errors"]
    last = list(golden[0])[-1]
    expected = {
        "unknown_model": ("404", "no-such-model"),
        "unknown_version": ("404", "99"),
        "missing_input": ("400", last),
        "infinite": ("400", next(iter(golden[0]))),
        "unknown_output": ("400", "logit"),
        "load_unknown": ("404", "no-such-model"),
    }
    for name, (status, text) in expected.items():
        assert errors[name][0] == status, (name, errors[name])
        assert text in errors[name][1], (name, errors[name])
    assert errors["late"][0] in ("503", "504"), errors["late"]


def test_triton_unloads_and_loads_over_http(over_http, golden):
    assert over_http["after_unload"]["ready"] is False
    assert over_http["after_unload"]["infer"][0] == "404"
    assert over_http["after_load"] == {"ready": True, "scores": golden[1]}


def test_triton_finds_the_server_over_grpc(over_grpc, golden):
    found = over_grpc
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["unknown_ready"] is False
    assert found["server"]["name"] == "fastdlrm"
    assert set(golden[0]) <= {tensor["name"] for tensor in found["model"]["inputs"]}
    assert found["config"]["config"]["name"] == MODEL
    assert found["index"]["models"][0]["state"] == "READY"


def test_triton_gets_the_scores_over_grpc(over_grpc, golden):
    scores = golden[1]
    assert over_grpc["scores"] == dict.fromkeys(over_grpc["scores"], scores)
    assert len(over_grpc["scores"]) == 4
    order = np.argsort(-np.array(scores), kind="stable")[:3].tolist()
    assert over_grpc["top"] == [order, [scores[index] for index in order]]


def test_an_error_in_a_stream_ends_none_but_its_own_request(over_grpc, golden):
    first, second, third = over_grpc["stream"]
    assert first == {"id": "s0", "scores": golden[1]}
    assert list(golden[0])[-1] in second["error"]
    assert third == {"id": "s2", "scores": golden[1]}


def test_triton_is_told_what_is_wrong_over_grpc(over_grpc, golden):
    errors = over_grpc["errors"]
    expected = {
        "unknown_model": ("NOT_FOUND", "no-such-model"),
        "missing_input": ("INVALID_ARGUMENT", list(golden[0])[-1]),
        "load_unknown": ("NOT_FOUND", "no-such-model"),
    }
    for name, (status, text) in expected.items():
        assert errors[name][0] == f"StatusCode.{status}", (name, errors[name])
        assert text in errors[name][1], (name, errors[name])
    late = ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")
    assert errors["late"][0] in late, errors["late"]
    assert errors["deadline"][0] == "StatusCode.DEADLINE_EXCEEDED", errors["deadline"]


def test_triton_unloads_and_loads_over_grpc(over_grpc, golden):
    assert over_grpc["after_unload"] == {"ready": False}
    assert over_grpc["after_load"] == {"ready": True, "scores": golden[1]}


def test_kserve_over_rest(by_kserve, golden):
    found = by_kserve["rest"]
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["json"] == golden[1]
    assert found["binary"] == golden[1]
    assert found["binary_answer"] is True
    assert found["unknown_model"][0] == "404"
    assert found["missing_input"][0] == "400"


def test_kserve_over_grpc(by_kserve, golden):
    found = by_kserve["grpc"]
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["scores"] == golden[1]
    assert found["raw"] == golden[1]
    assert found["unknown_model"][0] == "NOT_FOUND"
    assert found["missing_input"][0] == "INVALID_ARGUMENT"


@pytest.mark.slow
def test_loadgen_over_the_network_calls_its_run_valid(server, golden, tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="needs mlcommons-loadgen")
    columns, scores = golden
    found = run_client(
        sys.executable,
        "loadgen_network.py",
        {
            "host": "127.0.0.1",
            "port": server.http_port,
            "path": f"/v2/models/{MODEL}/infer",
            "bodies": [columns_body(rows_of(columns, row, row + 1)) for row in range(NUM_ROWS)],
            "qps": LOADGEN_QPS,
            "target_latency_ms": 200,
            "duration_ms": 1000 * LOADGEN_S,
            "folder": str(tmp_path),
        },
    )
    assert found["failures"] == []
    summary = (tmp_path / "mlperf_log_summary.txt").read_text()
    assert "Result is : VALID" in summary, summary
    assert "Scenario : Server" in summary
    assert "Performance constraints satisfied : Yes" in summary
    for sample, score in found["scores"].items():
        assert np.float32(score) == np.float32(scores[int(sample)])
    assert found["num_answered"] >= 0.9 * LOADGEN_QPS * LOADGEN_S


def test_the_server_is_as_it_was(server, golden):
    answer = server.infer(columns_body(golden[0]))
    assert answer.status == 200
    assert scores_of(answer).tolist() == golden[1]
