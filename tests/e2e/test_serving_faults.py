"""What goes wrong around a server: each fault ends in the right status, and the server lives on."""

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.contracts.wire import Infer
from fastdlrm.serve.grpc_messages import METHODS, SERVICE
from tests.builders import invoke
from tests.e2e.serving import (
    MODEL,
    ServerProcess,
    Traffic,
    columns_body,
    descendants,
    golden_rows,
    rows_of,
    scores_of,
    served,
    workers_of,
)
from tests.grpc_client import outcome_of, request_of

pytestmark = pytest.mark.xdist_group("serving")
MAX_BODY_BYTES = 20 * 2**20
TOKEN = "a-token-of-the-test"
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def golden(exported):
    columns, scores = exported.golden()
    return rows_of(columns, 0, 20), scores[:20]


@pytest.fixture(scope="module")
def impatient(exported, tmp_path_factory):
    """A server that waits for slow clients a second, and takes small bodies."""
    log = tmp_path_factory.mktemp("impatient") / "log.jsonl"
    limits = (
        "http.header_timeout_s=1",
        "http.body_timeout_s=1",
        f"limits.max_body_bytes={MAX_BODY_BYTES}",
        "limits.max_rows=2000",
    )
    flags = [word for limit in limits for word in ("--set", limit)]
    with served(exported.models, log, *flags) as running:
        yield running


def raw(server: ServerProcess, *pieces: bytes, wait_s: float = 0.0) -> bytes:
    """Send bytes as they are, a pause after each piece; all that comes back until it closes."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(wait_s)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:
            return b""
        return answer


# ---- a worker dies


@pytest.fixture(scope="module")
def crew(exported, tmp_path_factory):
    """A server of two workers; the last test that uses it kills it."""
    log = tmp_path_factory.mktemp("crew") / "log.jsonl"
    with served(exported.models, log, "--workers", 2) as running:
        yield running


def wait_for_workers(server: ServerProcess, restarts: float) -> None:
    """Until two workers are ready and so many were replaced."""
    until = time.monotonic() + 60
    while (
        server.metric("fastdlrm_worker_restarts", model=MODEL) < restarts
        or server.metric("fastdlrm_workers", model=MODEL) < 2
    ):
        assert time.monotonic() < until, server.log.read_text()
        time.sleep(0.05)


def test_a_killed_worker_loses_no_request_in_silence(crew, golden):
    columns, scores = golden
    workers = workers_of(crew)
    assert len(workers) == 2, descendants(crew.process.pid)
    with Traffic(crew, columns, num_threads=6) as traffic:
        traffic.wait(20)
        os.kill(workers[0], signal.SIGKILL)
        traffic.wait(200)
        wait_for_workers(crew, restarts=1)
    assert traffic.broken == []
    for answer in traffic.answers:
        if answer.status == 200:
            assert np.array_equal(scores_of(answer), scores)
        else:
            assert answer.status in (500, 503), answer
            assert answer.json()["error"]
    failed = [answer for answer in traffic.answers if answer.status != 200]
    assert len(failed) <= 6, failed  # at most what was under way when it died
    assert crew.metric("fastdlrm_worker_restarts", model=MODEL) == 1
    now = workers_of(crew)
    assert workers[0] not in now
    assert len(now) == 2
    assert crew.is_well(columns, scores)


def test_all_workers_killed_at_once_are_replaced(crew, golden):
    columns, scores = golden
    before = crew.metric("fastdlrm_worker_restarts", model=MODEL)
    for pid in workers_of(crew):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while crew.infer(columns_body(columns)).status != 200:
        assert time.monotonic() < until, "no worker came back"
        time.sleep(0.05)
    assert crew.is_well(columns, scores)
    wait_for_workers(crew, restarts=before + 2)


def test_workers_end_with_a_server_that_is_killed(crew):
    below = descendants(crew.process.pid)
    assert len(below) > 2
    crew.process.kill()
    crew.process.wait()
    until = time.monotonic() + 20
    while left := [pid for pid in below if _is_alive(pid)]:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- versions


@pytest.fixture(scope="module")
def repository(exported, tmp_path_factory):
    """A repository of one version to which tests add, and its server."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(exported.models, folder / "models")
    with served(folder / "models", folder / "log.jsonl", "--workers", 1) as running:
        yield folder / "models", running


def test_a_corrupted_version_is_refused_and_the_old_one_serves_on(repository, golden):
    models, server = repository
    columns, scores = golden
    shutil.copytree(models / MODEL / "1", models / MODEL / "7")
    with (models / MODEL / "7" / "tables.bin").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 0x41]))
    with Traffic(server, columns, num_threads=2) as traffic:
        traffic.wait(5)
        answer = server.ask("POST", f"/v2/repository/models/{MODEL}/load")
        traffic.wait(5)
    assert answer.status >= 400
    assert "tables.bin" in answer.json()["error"]
    assert traffic.broken == []
    assert all(np.array_equal(scores_of(a), scores) for a in traffic.answers)
    assert {a.json()["model_version"] for a in traffic.answers} == {"1"}
    index = {e["version"]: e for e in server.ask("POST", "/v2/repository/index").json()}
    assert index["1"]["state"] == "READY"
    assert index["7"]["state"] == "UNAVAILABLE"
    assert "tables.bin" in index["7"]["reason"]
    assert server.ask("GET", "/v2/health/ready").status == 200
    shutil.rmtree(models / MODEL / "7")


def test_a_swap_under_load_fails_no_request(repository, exported, golden):
    models, server = repository
    columns, old = golden
    invoke(*("export", "--run", exported.run, "--tables", "int8", "--out", models / MODEL / "8"))
    of_new, new = golden_rows(models / MODEL / "8")
    assert rows_of(of_new, 0, 20) == columns
    new = new[:20]
    assert not np.array_equal(old, new)
    with Traffic(server, columns, num_threads=4) as traffic:
        traffic.wait(20)
        path = f"/v2/repository/models/{MODEL}/load"
        answer = server.ask("POST", path, {"parameters": {"version": "8"}})
        num_before = len(traffic.answers)
        traffic.wait(40)
    assert answer.status == 200, answer.body
    assert traffic.broken == []
    assert {a.status for a in traffic.answers} == {200}
    by_version = {"1": old, "8": new}
    for found in traffic.answers:
        expected = by_version[found.json()["model_version"]]
        assert np.array_equal(scores_of(found), expected)
    assert {a.json()["model_version"] for a in traffic.answers[num_before + 4 :]} == {"8"}
    assert "1" in {a.json()["model_version"] for a in traffic.answers[:20]}


# ---- clients that are slow, gone or confused


def test_half_a_request_is_ended_while_others_are_answered(impatient, golden):
    columns, scores = golden
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    halves = {
        "headers": [b"POST /v2/models HTTP/1.1\r\nHost: x\r\nContent-"],
        "body": [head, b'{"inputs": ['],
        "drops": [bytes([byte]) for byte in b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: aaaa"],
    }
    with ThreadPoolExecutor(len(halves)) as pool:
        answers = {
            name: pool.submit(raw, impatient, *pieces, wait_s=0.1 if name == "drops" else 0.0)
            for name, pieces in halves.items()
        }
        while not all(answer.done() for answer in answers.values()):
            assert impatient.is_well(columns, scores)
    for name in ("headers", "body"):
        assert answers[name].result().startswith(b"HTTP/1.1 408 "), name
        assert b'{"error":' in answers[name].result()
    assert answers["drops"].result()[:13] in (b"", b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_holds_up_nobody(impatient, golden):
    columns, scores = golden
    body = json.dumps(columns_body({n: v * 100 for n, v in columns.items()})).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            client = socket.create_connection(("127.0.0.1", impatient.http_port), timeout=20)
            stack.callback(client.close)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.sendall(head + body)
        for _ in range(5):
            assert impatient.is_well(columns, scores)
    assert impatient.is_well(columns, scores)


def test_clients_that_go_before_their_answer_are_forgotten(impatient, golden):
    columns, scores = golden
    body = json.dumps(columns_body({n: v * 100 for n, v in columns.items()})).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", impatient.http_port), timeout=20) as client:
            client.sendall(head + body)
    assert impatient.is_well(columns, scores)
    until = time.monotonic() + 20
    while impatient.metric("fastdlrm_in_flight_requests") > 1:  # the scrape itself is one
        assert time.monotonic() < until
        time.sleep(0.05)


def test_garbage_is_refused(impatient, golden):
    columns, scores = golden
    garbage = np.random.default_rng(3).bytes(10 * 2**20)
    assert raw(impatient, garbage)[:13] in (b"", b"HTTP/1.1 400 ")
    answer = impatient.infer(garbage)
    assert answer.status == 400, answer.body
    headers = {"Inference-Header-Content-Length": "100"}
    assert impatient.infer(garbage, headers=headers).status == 400
    assert impatient.infer(garbage, headers={"Content-Encoding": "gzip"}).status == 400
    assert impatient.infer(b"[" * 2**20).status == 400
    assert impatient.infer(bytes(MAX_BODY_BYTES + 1)).status == 413
    address = ("127.0.0.1", impatient.grpc_port)
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(address, timeout=20) as client,
    ):
        client.sendall(garbage)
        while client.recv(65536):
            pass
    assert impatient.is_well(columns, scores)
    with grpc.insecure_channel(f"127.0.0.1:{impatient.grpc_port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as problem:
            infer(garbage[:100_000], timeout=20)
        assert problem.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert live(b"", timeout=20) == b"\x08\x01"


def binary(columns, sizes=None, tail=b""):
    """A request of the binary extension, its sizes as they are or as given."""
    inputs, pieces = [], []
    for name, texts in columns.items():
        piece = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
        size = (sizes or {}).get(name, len(piece))
        inputs.append(
            {
                "name": name,
                "shape": [len(texts)],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": size},
            }
        )
        pieces.append(piece)
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(pieces) + tail, {"Inference-Header-Content-Length": str(len(head))}


def test_wrong_lengths_are_refused(impatient, golden):
    columns, scores = golden
    first, second = list(columns)[:2]
    body, headers = binary(columns)
    assert impatient.infer(body, headers=headers).status == 200
    wrong = {
        "one byte short": binary(columns, {first: 3}),
        "beyond the body": binary(columns, {first: 2**40}),
        "negative": binary(columns, {first: -1}),
        "more than said": binary(columns, tail=b"more"),
        "header length beyond the body": (body, {"Inference-Header-Content-Length": "999999999"}),
        "header length negative": (body, {"Inference-Header-Content-Length": "-5"}),
        "header length no number": (body, {"Inference-Header-Content-Length": "x"}),
        "cut": (body[:-3], headers),
    }
    for name, (sent, of_it) in wrong.items():
        answer = impatient.infer(sent, headers=of_it)
        assert answer.status == 400, (name, answer)
        assert answer.json()["error"], name
    shapes = {
        "shape too long": {"shape": [21]},
        "shape negative": {"shape": [-1]},
        "shape huge": {"shape": [2**62, 4]},
        "shape text": {"shape": ["20"]},
        "datatype": {"datatype": "STRING"},
    }
    for name, change in shapes.items():
        sent = columns_body(columns)
        sent["inputs"][0] |= change
        assert impatient.infer(sent).status == 400, name
    short = columns | {second: columns[second][:7]}
    answer = impatient.infer(columns_body(short))
    assert answer.status == 400
    many = impatient.infer(columns_body({n: (v * 101)[:2001] for n, v in columns.items()}))
    assert many.status == 400
    assert "2000" in many.json()["error"]
    assert impatient.is_well(columns, scores)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dense": [[float("inf")] * 4]}, "dense"),
        ({"dense": [["nan"] * 4]}, "dense"),
        ({"ids": [[-1] * 6]}, "ids"),
        ({"ids": [[2**31 - 1] * 6]}, "ids"),
        ({"ids": [[1] * 5]}, "ids"),
        ({"dense": [[0.5] * 3]}, "dense"),
    ],
    ids=["infinite", "text", "negative-id", "id-out-of-range", "too-few-ids", "too-few-dense"],
)
def test_encoded_rows_that_do_not_fit_are_refused(impatient, golden, change, words):
    rows = {"dense": [[0.5] * 4], "ids": [[1] * 6]}
    right = impatient.infer(encoded_body(rows))
    assert right.status == 200, right.body
    answer = impatient.infer(encoded_body(rows | change))
    assert answer.status == 400, answer.body
    assert words in answer.json()["error"]
    assert impatient.is_well(*golden)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_encoded_numbers_that_are_none_are_refused(impatient, golden, value):
    dense = np.array([[0.5, 0.5, value, 0.5]], "<f4").tobytes()
    ids = np.ones((1, 6), "<i4").tobytes()
    kinds = (("dense", "FP32", [1, 4], dense), ("ids", "INT32", [1, 6], ids))
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": len(data)},
        }
        for name, datatype, shape, data in kinds
    ]
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = impatient.infer(head + dense + ids, headers=headers)
    assert answer.status == 400, answer.body
    assert "dense" in answer.json()["error"]
    assert impatient.is_well(*golden)


def encoded_body(rows):
    """A request of the encoded form, in JSON but for infinities, which JSON lacks."""
    kinds = {"dense": "FP32", "ids": "INT64"}
    inputs = []
    for name, values in rows.items():
        clean = [1e39 if value == float("inf") else value for value in values[0]]
        inputs.append(
            {"name": name, "shape": [1, len(clean)], "datatype": kinds[name], "data": clean}
        )
    return {"inputs": inputs}


def test_values_that_are_no_numbers_are_refused(impatient, golden):
    columns, scores = golden
    answer = impatient.infer(columns_body(columns | {"I1": ["x"] * 20}))
    assert answer.status == 400
    assert "I1" in answer.json()["error"]
    assert "'x'" in answer.json()["error"]
    assert impatient.is_well(columns, scores)


# ---- the end


def test_sigterm_answers_what_is_under_way(exported, golden, tmp_path):
    columns, scores = golden
    body = json.dumps(columns_body(columns)).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    log = tmp_path / "log.jsonl"
    flags = ("--set", "shutdown.grace_s=1")
    with served(exported.models, log, *flags) as server:
        address = ("127.0.0.1", server.http_port)
        with socket.create_connection(address, timeout=30) as half:
            half.sendall(head + body[:100])
            big = {name: values * 100 for name, values in columns.items()}
            with Traffic(server, big, num_threads=4) as traffic:
                traffic.wait(4)
                server.process.send_signal(signal.SIGTERM)
                server.event("leaving")
                unready = server.ask("GET", "/v2/health/ready")
                assert (unready.status, unready.json()["ready"]) == (503, False)
                assert server.ask("GET", "/v2/health/live").status == 200
                assert server.is_well(columns, scores)  # still serving, for whom sends to it
            server.event("draining")
            until = time.monotonic() + 20
            with pytest.raises(OSError):
                while time.monotonic() < until:
                    socket.create_connection(address, timeout=1).close()
                    time.sleep(0.01)
            half.sendall(body[100:])
            answer = b""
            while piece := half.recv(65536):
                answer += piece
        assert server.process.wait(60) == 0
    assert traffic.broken == []
    assert {found.status for found in traffic.answers} == {200}
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"]
    assert server.events()[-1]["event"] == "stopped"


def grpc_call(server: ServerProcess, stack: contextlib.ExitStack, kind: str, name: str) -> Any:
    """A method of the service, called on a connection of its own; `kind` as unary_unary."""
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
    method = METHODS[name]
    return getattr(channel, kind)(
        f"/{SERVICE}/{name}",
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def test_sigterm_answers_grpc_calls_under_way_and_refuses_others(exported, golden, tmp_path):
    columns, scores = golden
    inputs = {name: WireTensor.from_texts(values) for name, values in columns.items()}
    request = request_of(Infer(inputs=inputs, model_name=MODEL))
    flags = ("--workers", 1, "--set", "limits.default_timeout_ms=60000")
    with (
        served(exported.models, tmp_path / "log.jsonl", *flags) as server,
        contextlib.ExitStack() as channels,
    ):
        sent: queue.Queue[Any] = queue.Queue()
        stream = grpc_call(server, channels, "stream_stream", "ModelStreamInfer")(
            iter(sent.get, None), timeout=60
        )
        sent.put(request)
        answered = [next(stream).infer_response]  # the stream is under way
        (worker,) = workers_of(server)
        os.kill(worker, signal.SIGSTOP)
        try:
            infer = grpc_call(server, channels, "unary_unary", "ModelInfer")
            waiting = infer.future(request, timeout=60)
            until = time.monotonic() + 30
            while server.metric("fastdlrm_stage_seconds_count", stage="parse") < 2:
                assert time.monotonic() < until, "the call does not arrive"
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            server.event("draining")
            live = METHODS["ServerLive"].request()
            with pytest.raises(grpc.RpcError) as refused:
                while time.monotonic() < until + 30:
                    grpc_call(server, channels, "unary_unary", "ServerLive")(live, timeout=20)
            # a call that is on its way while the connection goes is cancelled by the client
            codes = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert refused.value.code() in codes
            assert not waiting.done()
        finally:
            os.kill(worker, signal.SIGCONT)
        answered.append(waiting.result())
        sent.put(request)
        answered.append(next(stream).infer_response)
        sent.put(None)
        assert list(stream) == []
        assert server.process.wait(60) == 0
    for answer in answered:
        np.testing.assert_array_equal(outcome_of(answer).outputs["score"].values(), scores)
    assert server.events()[-1]["event"] == "stopped"


def test_sigterm_while_models_load_ends_with_code_0(exported, tmp_path):
    with served(exported.models, tmp_path / "log.jsonl", wait=False) as server:
        assert server.stop(within_s=90) == 0


# ---- who may ask


@pytest.fixture(scope="module")
def guarded(exported, tmp_path_factory):
    """A server that asks for a token and speaks TLS; its certificate."""
    folder = tmp_path_factory.mktemp("guarded")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on the path: no certificate can be made")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", key, "-out", certificate, "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    changes = (
        f"security.tls_certificate={certificate}",
        f"security.tls_key={key}",
        "security.token_env=FASTDLRM_TEST_TOKEN",
    )
    flags = [word for change in changes for word in ("--set", change)]
    env = {"FASTDLRM_TEST_TOKEN": TOKEN}
    with served(exported.models, folder / "log.jsonl", *flags, env=env, ca=certificate) as running:
        yield running, certificate


def test_a_token_is_asked_for(guarded, golden):
    server, _ = guarded
    columns, scores = golden
    body = columns_body(columns)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = server.infer(body, headers=headers)
        assert answer.status == 401, headers
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.body.decode()
        assert server.ask("POST", "/v2/repository/index", headers=headers).status == 401
        unload = f"/v2/repository/models/{MODEL}/unload"
        assert server.ask("POST", unload, headers=headers).status == 401
    right = server.infer(body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert right.status == 200
    assert np.array_equal(scores_of(right), scores)
    assert server.ask("GET", "/v2/health/ready").status == 200
    assert TOKEN not in server.log.read_text()


def test_tls_over_http_and_grpc(guarded):
    server, certificate = guarded
    assert server.tls is not None
    assert server.ask("GET", "/v2/health/live").status == 200
    plain = raw(server, b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" not in plain
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
        metadata = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        with pytest.raises(grpc.RpcError) as problem:
            metadata(b"", timeout=20)
        assert problem.value.code() == grpc.StatusCode.UNAUTHENTICATED
        call = (("authorization", f"Bearer {TOKEN}"),)
        assert b"fastdlrm" in metadata(b"", timeout=20, metadata=call)
    assert server.ask("GET", "/v2/health/live").status == 200


def test_many_connections_at_once(impatient, golden):
    columns, scores = golden
    problems = []

    def ask():
        try:
            assert impatient.is_well(columns, scores)
        except (AssertionError, OSError) as problem:
            problems.append(problem)

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
