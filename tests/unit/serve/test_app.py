"""The HTTP routes over real sockets; scores are 1 / (1 + exp(-(a + 2 b)))."""

import gzip
import json
import struct
import zlib

import pytest

from fastdlrm.errors import DeadlineExceeded, Overloaded, ServeError
from fastdlrm.serve.config import Limits, Log
from tests.serving import MODEL, add_version, free_ports, running

INFER = f"/v2/models/{MODEL}/infer"


def tensors(a, b):
    return {
        "inputs": [
            {"name": "a", "datatype": "FP64", "shape": [len(a)], "data": a},
            {"name": "b", "datatype": "FP64", "shape": [len(b)], "data": b},
        ]
    }


# 1 / (1 + exp(0)) = 0.5; 1 / (1 + exp(-2)) = 0.8807970...; 1 / (1 + exp(1)) = 0.2689414...
ROWS = tensors([0, 1, 1], [0, 0.5, -1])
SCORES = [0.5, 0.8807970, 0.2689414]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("models")) as made:
        yield made


@pytest.fixture
def engine(server):
    yield server.engine
    server.engine.problem, server.engine.delay_s = None, 0.0


def test_server_metadata_names_what_is_there(server):
    status, found = server.json("GET", "/v2")
    assert status == 200
    assert found["name"] == "fastdlrm"
    assert found["extensions"] == [
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "schedule_policy",
        "statistics",
    ]


def test_health(server):
    assert server.json("GET", "/v2/health/live") == (200, {"live": True})
    assert server.json("GET", "/v2/health/ready") == (200, {"live": True, "ready": True})


@pytest.mark.parametrize("path", [f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1"])
def test_model_metadata_ready_config_and_statistics(server, path):
    status, model = server.json("GET", path)
    assert (status, model["name"], model["versions"]) == (200, MODEL, ["1"])
    assert model["inputs"][0] == {"name": "a", "datatype": "FP64", "shape": [-1]}
    assert [output["name"] for output in model["outputs"]] == ["score", "item_index"]
    assert server.json("GET", f"{path}/ready") == (200, {"name": MODEL, "ready": True})
    status, config = server.json("GET", f"{path}/config")
    assert (status, config["input"][0]["data_type"]) == (200, "TYPE_FP64")
    status, found = server.json("GET", f"{path}/stats")
    assert (status, found["model_stats"][0]["version"]) == (200, "1")


@pytest.mark.parametrize("path", [INFER, f"/v2/models/{MODEL}/versions/1/infer"])
def test_infer_in_json(server, path):
    status, found = server.json("POST", path, ROWS | {"id": "seven"})
    assert (status, found["id"], found["model_version"]) == (200, "seven", "1")
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("score", "FP32", [3])
    assert output["data"] == pytest.approx(SCORES, abs=1e-6)


def test_infer_in_binary_without_a_content_type(server):
    """As tritonclient asks: raw tensors behind the JSON, raw scores wanted."""
    header = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": name,
                    "datatype": "FP64",
                    "shape": [3],
                    "parameters": {"binary_data_size": 24},
                }
                for name in "ab"
            ],
        }
    ).encode()
    body = header + struct.pack("<6d", 0, 1, 1, 0, 0.5, -1)
    status, headers, answer = server.ask(
        "POST", INFER, body, {"Inference-Header-Content-Length": str(len(header))}
    )
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    length = int(headers["inference-header-content-length"])
    assert json.loads(answer[:length])["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert struct.unpack("<3f", answer[length:]) == pytest.approx(SCORES, abs=1e-6)


def test_top_k_is_best_first_and_ties_go_by_index(server):
    body = tensors([0, 1, 0, 1], [0, 0, 0, 0]) | {"parameters": {"top_k": 3}}
    status, found = server.json("POST", INFER, body)
    index, score = found["outputs"]
    assert (status, index["name"], index["data"]) == (200, "item_index", [1, 3, 0])
    assert score["data"] == pytest.approx([0.7310586, 0.7310586, 0.5], abs=1e-6)


def test_score_and_rank(server):
    rows = [{"a": 0, "b": 0}, {"a": 1, "b": 0.5}]
    status, found = server.json("POST", f"/v1/models/{MODEL}:score", {"rows": rows})
    assert (status, found["scores"]) == (200, pytest.approx([0.5, 0.8807970], abs=1e-6))
    body = {"user": {"a": 1}, "candidates": [{"b": -1}, {"b": 0.5}, {"b": 0}], "top_k": 2}
    for path in (f"/v1/models/{MODEL}:rank", f"/v1/models/{MODEL}/versions/1:rank"):
        status, found = server.json("POST", path, body)
        assert (status, [item["index"] for item in found["ranking"]]) == (200, [1, 2])


def test_examples_can_be_scored(server):
    status, found = server.json("GET", f"/v1/models/{MODEL}")
    assert status == 200
    status, scored = server.json("POST", f"/v1/models/{MODEL}:score", {"rows": found["examples"]})
    # exp(-2), exp(0.5) and exp(0)
    assert (status, scored["scores"]) == (
        200,
        pytest.approx([0.8807970, 0.3775407, 0.5], abs=1e-6),
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_opened(server, encoding):
    plain = json.dumps(ROWS).encode()
    body = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    status, _, answer = server.ask("POST", INFER, body, {"Content-Encoding": encoding})
    assert status == 200
    assert json.loads(answer)["outputs"][0]["data"] == pytest.approx(SCORES, abs=1e-6)


def test_statistics_count_what_was_asked(tmp_path):
    with running(tmp_path) as server:
        server.json("POST", INFER, ROWS)
        server.json("POST", INFER, ROWS)
        server.json("POST", INFER, tensors([0], [0]) | {"outputs": [{"name": "rank"}]})
        _, found = server.json("GET", "/v2/models/stats")
        (model,) = found["model_stats"]
        assert model["inference_count"] == 6
        counts = {name: value["count"] for name, value in model["inference_stats"].items()}
        assert (counts["success"], counts["fail"], counts["queue"]) == (2, 1, 2)
        assert model["inference_stats"]["compute_infer"]["ns"] == 6000
        assert model["execution_count"] == 2
        (batches,) = model["batch_stats"]
        assert (batches["batch_size"], batches["compute_infer"]) == (3, {"count": 2, "ns": 6000})
        text = server.ask("GET", "/metrics")[2].decode()
        assert f'fastdlrm_query_rows_sum{{model="{MODEL}"}} 6.0' in text
        assert 'fastdlrm_requests_total{code="400",protocol="http",route="infer"} 1.0' in text
        assert f'fastdlrm_batches_total{{model="{MODEL}",reason="idle"}} 2.0' in text
        assert f'fastdlrm_failed_queries_total{{cause="invalid",model="{MODEL}"}} 1.0' in text


WRONG = [
    ("GET", "/nope", None, 404, "no path '/nope'; GET /docs lists all of them"),
    ("GET", "/v2/models//ready", None, 404, "no path"),
    ("GET", f"/v2/models/{MODEL}/versions/1/nope", None, 404, "no path"),
    ("GET", f"/v2/models/{MODEL}/versions", None, 404, "no path"),
    ("POST", f"/v1/models/{MODEL}:nope", "{}", 404, "no path"),
    ("GET", INFER, None, 405, "POST is allowed"),
    ("PUT", "/v2", None, 405, "GET, HEAD is allowed"),
    ("GET", "/v2/models/nope", None, 404, "model 'nope' is not served; served: shop version 1"),
    ("GET", f"/v2/models/{MODEL}/versions/7", None, 404, "version '7' is not served"),
    ("GET", "/v2/models/nope/stats", None, 404, "not served"),
    ("POST", "/v2/models/nope/infer", json.dumps(ROWS), 404, "not served"),
    ("POST", INFER, "{", 400, "request body: "),
    ("POST", INFER, "", 400, "request body: "),
    ("POST", INFER, '{"inputs": []}', 400, "a and b are needed"),
    ("POST", INFER, json.dumps(ROWS | {"outputs": [{"name": "rank"}]}), 400, "available are score"),
    ("POST", f"/v1/models/{MODEL}:score", '{"rows": []}', 400, "rows: there are none"),
    ("POST", f"/v1/models/{MODEL}:rank", '{"items": []}', 400, "unknown field `items`"),
    ("POST", "/v2/repository/index", "[]", 400, "request body: "),
    ("POST", "/v2/repository/models/nope/load", None, 404, "no model 'nope' in the repository"),
    ("POST", "/v2/repository/models/nope/unload", None, 404, "no model 'nope' in the repository"),
    (
        "POST",
        f"/v2/repository/models/{MODEL}/load",
        '{"parameters": {"version": "x"}}',
        400,
        "no number of a version",
    ),
    (
        "POST",
        f"/v2/repository/models/{MODEL}/load",
        '{"parameters": {"config": "{}"}}',
        400,
        "parameter 'config' is not known; allowed is version",
    ),
    (
        "POST",
        f"/v2/repository/models/{MODEL}/load",
        '{"parameters": {"version": 9}}',
        404,
        "has no version '9'; there are 1",
    ),
    ("GET", "/v1/status?since=x", None, 400, "parameter since: 'x' is no number"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "words"), WRONG)
def test_wrong_requests(server, method, path, body, status, words):
    found, headers, answer = server.ask(method, path, body)
    assert (found, headers["content-type"]) == (status, "application/json")
    assert words in json.loads(answer)["error"]
    assert "allow" in headers or status != 405


WRONG_HEADERS = [
    ({"Content-Encoding": "br"}, 415, "'br'; gzip, deflate or none is allowed"),
    ({"Content-Encoding": "gzip"}, 400, "body is not gzip as its Content-Encoding says"),
    ({"Inference-Header-Content-Length": "many"}, 400, "'many' is not a number of bytes"),
    ({"Request-Timeout-Ms": "soon"}, 400, "'soon' is no positive number of milliseconds"),
    ({"Request-Timeout-Ms": "0"}, 400, "'0' is no positive number of milliseconds"),
]


@pytest.mark.parametrize(("headers", "status", "words"), WRONG_HEADERS)
def test_wrong_headers(server, headers, status, words):
    found, _, answer = server.ask("POST", INFER, json.dumps(ROWS), headers)
    assert found == status
    assert words in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("problem", "status", "words"),
    [
        (Overloaded("too many wait", retry_after_s=2.6), 503, "too many wait"),
        (DeadlineExceeded("too late"), 504, "too late"),
        (ServeError("worker 3 died twice"), 500, "worker 3 died twice"),
        (ZeroDivisionError("secret"), 500, "the server failed on this request; its log says why"),
    ],
)
def test_problems_of_the_engine(server, engine, problem, status, words):
    engine.problem = problem
    found, headers, answer = server.ask("POST", INFER, json.dumps(ROWS))
    assert (found, json.loads(answer)) == (status, {"error": words})
    assert headers.get("retry-after") == ("3" if status == 503 else None)


def test_an_unforeseen_error_is_logged_whole(server, engine):
    engine.problem = ZeroDivisionError("of engine 7")
    assert server.json("POST", INFER, ROWS)[0] == 500
    (line,) = [line for line in server.log if "of engine 7" in line.get("problem", "")]
    assert (line["level"], line["route"]) == ("error", "infer")
    assert "in submit" in line["trace"]


def test_limits_on_rows_and_bytes(tmp_path):
    limits = Limits(max_rows=2, max_body_bytes=300)
    with running(tmp_path, free_ports(limits=limits)) as server:
        status, found = server.json("POST", INFER, tensors([0, 1, 2], [0]))
        assert (status, found) == (
            400,
            {"error": "3 rows in one request; at most 2 are allowed, send several requests"},
        )
        status, found = server.json("POST", INFER, {"id": "x" * 300})
        assert (status, "at most 300 are allowed" in found["error"]) == (413, True)
        bomb = gzip.compress(b" " * 100_000)
        assert len(bomb) < 300
        status, _, answer = server.ask("POST", INFER, bomb, {"Content-Encoding": "gzip"})
        assert (status, b"more than 300 bytes" in answer) == (413, True)
        cut = gzip.compress(b"{}")[:-3]
        status, _, answer = server.ask("POST", INFER, cut, {"Content-Encoding": "gzip"})
        assert (status, b"not one whole gzip stream" in answer) == (400, True)


def test_the_token_opens_all_but_health_and_pages(tmp_path):
    with running(tmp_path, token=b"s3cret") as server:
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/", "/docs"):
            assert server.ask("GET", path)[0] == 200, path
        for headers in ({}, {"Authorization": "s3cret"}, {"Authorization": "Bearer s3cre"}):
            status, answered, answer = server.ask("POST", INFER, json.dumps(ROWS), headers)
            assert (status, answered["www-authenticate"]) == (401, "Bearer")
            assert b"bearer token is missing or wrong" in answer
        status, _, _ = server.ask(
            "POST", INFER, json.dumps(ROWS), {"Authorization": "bearer s3cret"}
        )
        assert status == 200
        assert server.ask("GET", "/v1/status")[0] == 401


def test_versions_are_swapped_and_a_bad_one_changes_nothing(tmp_path):
    add_version(tmp_path, 1)
    with running(tmp_path) as server:
        load = f"/v2/repository/models/{MODEL}/load"
        add_version(tmp_path, 2)
        add_version(tmp_path, 10)
        server.refused["10"] = ServeError("golden scores differ")
        status, found = server.json("POST", load)
        assert (status, found) == (500, {"error": "golden scores differ"})
        assert server.json("GET", f"/v2/models/{MODEL}")[1]["versions"] == ["1"]
        assert server.json("POST", load, {"parameters": {"version": "2"}}) == (200, {})
        assert server.json("GET", f"/v2/models/{MODEL}")[1]["versions"] == ["2"]
        assert server.engine.stopped
        assert server.json("POST", "/v2/repository/index")[1] == [
            {
                "name": MODEL,
                "version": "1",
                "state": "UNAVAILABLE",
                "reason": "version 2 took its place",
            },
            {"name": MODEL, "version": "2", "state": "READY", "reason": ""},
            {
                "name": MODEL,
                "version": "10",
                "state": "UNAVAILABLE",
                "reason": "golden scores differ",
            },
        ]
        ready = server.json("POST", "/v2/repository/index", {"ready": True})[1]
        assert [entry["version"] for entry in ready] == ["2"]
        status, found = server.json("GET", f"/v2/models/{MODEL}/versions/1")
        assert (status, "version 2 took its place" in found["error"]) == (404, True)
        assert server.json("POST", f"/v2/repository/models/{MODEL}/unload") == (200, {})
        assert server.json("GET", f"/v2/models/{MODEL}/ready")[0] == 503
        status, found = server.json("POST", f"/v2/repository/models/{MODEL}/unload")
        assert (status, "nothing to unload" in found["error"]) == (404, True)


def test_pages_hold_all_they_need(server):
    for path in ("/", "/docs"):
        status, headers, body = server.ask("GET", path)
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        text = body.decode()
        assert "@@" not in text
        assert "default-src 'none'" in headers["content-security-policy"]
        for loaded in ('<link rel="stylesheet', 'src="http', "@import", "url(http"):
            assert loaded not in text


def test_head_is_get_without_a_body(server):
    status, headers, body = server.ask("HEAD", "/v2")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_a_share_of_requests_is_logged(tmp_path):
    with running(tmp_path, free_ports(log=Log(access_share=1.0))) as server:
        server.json("GET", "/v2/models/nope")
        (line,) = [line for line in server.log if line["event"] == "request"]
        assert (line["route"], line["status"], line["method"]) == ("model", 404, "GET")
        assert (line["path"], line["client"]) == ("/v2/models/nope", "127.0.0.1")
        assert line["ms"] > 0
