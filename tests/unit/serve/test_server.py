"""A server's life: ports, readiness, signals, draining, TLS."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastdlrm.errors import ConfigError, ExportError, ServeError
from fastdlrm.serve.config import Grpc, Http, Security, Shutdown
from tests.builders import ROOT
from tests.serving import MODEL, Running, add_version, free_ports, running

SCORE = f"/v1/models/{MODEL}:score"
ROW = {"rows": [{"a": 0, "b": 0}]}


def events(server):
    return [line["event"] for line in server.log]


def until(condition):
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_events_of_a_life(tmp_path):
    with running(tmp_path) as server:
        assert server.json("POST", SCORE, ROW)[0] == 200
    assert events(server) == [
        "started",
        "version_ready",
        "ready",
        "leaving",
        "draining",
        "version_stopped",
        "stopped",
    ]
    started = server.log[0]
    assert (started["host"], started["http_port"]) == ("127.0.0.1", server.port)
    assert started["config"]["limits"]["max_rows"] == 10_000
    assert server.engine.stopped


def test_it_lives_before_it_is_ready(tmp_path):
    """While a version loads, probes are answered and requests are told to come later."""
    add_version(tmp_path, 1)
    gate = threading.Event()
    with running(tmp_path) as server:
        loop_start = server._start

        async def slow(folder, name, version, observer):
            while not gate.is_set():
                await asyncio.sleep(0.005)
            return await loop_start(folder, name, version, observer)

        server.server._repository._start = slow
        add_version(tmp_path, 2)
        loading = threading.Thread(
            target=server.json, args=("POST", f"/v2/repository/models/{MODEL}/load")
        )
        loading.start()
        loaded = f"/v1/models/{MODEL}/versions/2:score"
        until(lambda: server.json("POST", loaded, ROW)[0] == 503)  # 404 until it is being loaded
        assert server.json("GET", f"/v2/models/{MODEL}/versions/2/ready")[0] == 503
        status, headers, body = server.ask("POST", loaded, json.dumps(ROW))
        assert (status, headers["retry-after"]) == (503, "1")
        assert "version 2 is LOADING" in json.loads(body)["error"]
        assert server.json("POST", SCORE, ROW)[1]["model_version"] == "1"
        gate.set()
        loading.join()
        assert server.json("POST", SCORE, ROW)[1]["model_version"] == "2"


def test_it_can_be_ended_while_it_loads(tmp_path):
    add_version(tmp_path, 1)
    server = Running(tmp_path, free_ports(), None)

    async def never(folder, name, version, observer):
        await asyncio.sleep(60)

    server.server._repository._start = never
    server.launch()
    until(lambda: "started" in events(server))
    assert server.json("GET", "/v2/health/live")[0] == 200
    assert server.json("GET", "/v2/health/ready")[0] == 503
    assert server.json("GET", f"/v2/models/{MODEL}/versions/1")[0] == 503
    server.end()
    assert events(server)[-1] == "stopped"


def test_a_request_under_way_is_answered_before_the_end(tmp_path):
    with running(tmp_path) as server:
        server.engine.delay_s = 0.3
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.json("POST", SCORE, ROW)))
        asking.start()
        until(lambda: server.engine.num_waiting == 1)
        server.end()
        asking.join()
        assert answers[0][0] == 200
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "/v2/health/live")


def test_a_request_that_takes_too_long_is_cut_off_with_an_answer(tmp_path):
    with running(tmp_path, free_ports(shutdown=Shutdown(drain_s=0.3))) as server:
        server.engine.delay_s = 60
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.json("POST", SCORE, ROW)))
        asking.start()
        until(lambda: server.engine.num_waiting == 1)
        server.end()
        asking.join()
        assert answers == [(503, {"error": "the server shuts down; ask another one"})]


def test_in_its_grace_it_is_not_ready_and_still_serves(tmp_path):
    with running(tmp_path, free_ports(shutdown=Shutdown(grace_s=1.0))) as server:
        ending = threading.Thread(target=server.end)
        ending.start()
        until(lambda: "leaving" in events(server))
        assert server.json("GET", "/v2/health/ready") == (503, {"live": True, "ready": False})
        assert server.json("GET", "/v2/health/live")[0] == 200
        assert server.json("GET", f"/v2/models/{MODEL}/ready")[0] == 503
        assert server.json("POST", SCORE, ROW)[0] == 200
        assert server.json("GET", "/v1/status")[1]["state"] == "leaving"
        status, found = server.json("POST", f"/v2/repository/models/{MODEL}/load")
        assert (status, "starting or shutting down" in found["error"]) == (503, True)
        ending.join()


def test_a_port_in_use_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"http.port {port}: cannot listen there: .*in use"),
            running(tmp_path, free_ports(http=Http(port=port))),
        ):
            pass
        with (
            pytest.raises(ServeError, match=f"gRPC cannot listen at 127.0.0.1:{port}"),
            running(tmp_path, free_ports(grpc=Grpc(port=port))),
        ):
            pass


def test_a_model_that_cannot_be_served_ends_the_start(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ExportError, match="no exported model"), running(tmp_path):
        pass


def test_listening_to_all_without_a_token_is_warned_of(tmp_path):
    with running(tmp_path, free_ports(http=Http(host="0.0.0.0", port=0))) as server:
        assert server.json("GET", "/v2")[0] == 200
    (line,) = [line for line in server.log if line["event"] == "open_to_others"]
    assert "set security.token_file" in line["message"]


def test_without_grpc_there_is_no_second_port(tmp_path):
    with running(tmp_path, free_ports(grpc=Grpc(enabled=False))) as server:
        assert server.server.grpc_port == 0


@contextlib.contextmanager
def started(tmp_path, delay_s=0.0, grace_s=0.0):
    """A server in a process of its own; its address and its log's lines."""
    add_version(tmp_path, 1)
    command = [sys.executable, "-m", "tests.serving", tmp_path, str(delay_s), str(grace_s)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            lines = []
            while not lines or lines[-1]["event"] != "ready":
                lines.append(json.loads(process.stderr.readline()))
            yield process, ("127.0.0.1", lines[0]["http_port"]), lines
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path, number):
    with started(tmp_path) as (process, address, _):
        with contextlib.closing(http.client.HTTPConnection(*address, timeout=20)) as client:
            client.request("GET", "/v2/health/ready")
            assert client.getresponse().status == 200
        process.send_signal(number)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 0
        said = [json.loads(line)["event"] for line in rest.splitlines()]
        assert said == ["signal", "leaving", "draining", "version_stopped", "stopped"]


def test_a_second_signal_ends_it_at_once(tmp_path):
    with started(tmp_path, grace_s=60.0) as (process, _, _):
        process.send_signal(signal.SIGTERM)
        while json.loads(process.stderr.readline())["event"] != "leaving":
            pass
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM
        assert json.loads(rest.splitlines()[-1])["event"] == "ended_at_once"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of this machine's, signed by itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "chain.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", key, "-out", chain, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return Security(tls_certificate=str(chain), tls_key=str(key))


def test_http_and_grpc_over_tls(tmp_path, certificate):
    import grpc

    from fastdlrm.serve.grpc_messages import METHODS, SERVICE

    chain = certificate.tls_certificate
    with running(tmp_path, free_ports(security=certificate)) as server:
        trust = ssl.create_default_context(cafile=chain)
        secure = http.client.HTTPSConnection("localhost", server.port, timeout=20, context=trust)
        with contextlib.closing(secure):
            secure.request("POST", SCORE, json.dumps(ROW))
            assert json.loads(secure.getresponse().read())["scores"] == [0.5]
        trusted = grpc.ssl_channel_credentials(Path(chain).read_bytes())
        address = f"localhost:{server.server.grpc_port}"
        with grpc.secure_channel(address, trusted) as channel:
            method = METHODS["ServerReady"]
            ask = channel.unary_unary(
                f"/{SERVICE}/ServerReady",
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            assert ask(method.request(), timeout=20).ready


def test_tls_files_that_do_not_fit_are_an_error(tmp_path, certificate):
    for security in (
        Security(tls_certificate=str(tmp_path / "none"), tls_key=certificate.tls_key),
        Security(tls_certificate=certificate.tls_key, tls_key=certificate.tls_key),
    ):
        models = tmp_path / "models"
        models.mkdir(exist_ok=True)
        with (
            pytest.raises(ConfigError, match=r"security.tls_certificate .*; both must be PEM"),
            running(models, free_ports(security=security)),
        ):
            pass
