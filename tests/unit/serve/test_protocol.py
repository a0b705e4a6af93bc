"""Connections byte by byte: what is held, for how long, and how answers leave."""

import contextlib
import json
import socket
import time

import pytest

from fastdlrm.serve.config import Http, Limits
from tests.serving import MODEL, free_ports, running

BODY = json.dumps(
    {
        "inputs": [
            {"name": name, "datatype": "FP64", "shape": [1], "data": [0]} for name in ("a", "b")
        ]
    }
).encode()
INFER = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\n".encode()
WHOLE = INFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("models")) as made:
        yield made


@contextlib.contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def read_to_end(client):
    """All that comes until the server closes."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def split(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def until(condition):
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_head_and_body_of_an_answer_come_as_one_packet(server):
    """Two writes would wait 40 ms for each other where the client delays its acknowledgements."""
    with connected(server) as client:
        for _ in range(20):
            client.sendall(WHOLE)
            assert split(client.recv(65536))[1]["outputs"][0]["data"] == [0.5]


def test_answers_are_not_held_back_by_nagle(server):
    with connected(server) as client:
        client.sendall(GET)
        client.recv(65536)
        (connection,) = server.server._http.server_state.connections
        found = connection.transport.get_extra_info("socket")
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_pipelined_requests_are_answered_in_order(server):
    with connected(server) as client:
        client.sendall(WHOLE + GET + WHOLE)
        answer = b""
        while answer.count(b"HTTP/1.1 200") < 3 or not answer.endswith(b"}"):
            answer += client.recv(65536)
        bodies = [part.split(b"\r\n\r\n")[1] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
        assert [b"live" in body for body in bodies] == [False, True, False]


def test_a_body_may_come_in_pieces_and_without_a_length(server):
    with connected(server) as client:
        client.sendall(INFER + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in (BODY[:10], BODY[10:]):
            time.sleep(0.02)
            client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.sendall(b"0\r\n\r\n")
        assert split(client.recv(65536))[0] == 200


def test_a_client_that_asks_first_is_told_to_go_on(server):
    with connected(server) as client:
        client.sendall(INFER + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert split(client.recv(65536))[0] == 200


def test_what_is_no_http_is_refused(server):
    with connected(server) as client:
        client.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        assert split(read_to_end(client)) == (400, {"error": "Invalid HTTP request received."})


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked, nonsense\r\n",
    ],
)
def test_lengths_that_contradict_each_other_are_refused(server, headers):
    with connected(server) as client:
        client.sendall(INFER + headers + b"\r\n")
        assert split(read_to_end(client))[0] == 400


def test_a_client_that_goes_cancels_its_query(server):
    server.engine.delay_s = 60.0
    try:
        with connected(server) as client:
            client.sendall(WHOLE)
            until(lambda: server.engine.num_waiting == 1)
        until(lambda: server.engine.num_cancelled == 1)
    finally:
        server.engine.delay_s = 0.0
    text = server.ask("GET", "/metrics")[2].decode()
    assert 'fastdlrm_requests_total{code="499",protocol="http",route="infer"} 1.0' in text
    assert f'fastdlrm_failed_queries_total{{cause="client_gone",model="{MODEL}"}} 1.0' in text


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    http = Http(
        port=0,
        max_connections=3,
        header_timeout_s=0.3,
        body_timeout_s=0.3,
        max_header_bytes=1000,
        keep_alive_s=0.3,
    )
    config = free_ports(http=http, limits=Limits(max_body_bytes=200_000))
    with running(tmp_path_factory.mktemp("models"), config) as made:
        yield made


def test_long_headers_are_refused(strict):
    with connected(strict) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 1000 + b"\r\n\r\n")
        status, found = split(read_to_end(client))
        assert (status, found) == (431, {"error": "headers of more than 1000 bytes; send fewer"})


def test_a_long_path_is_refused(strict):
    with connected(strict) as client:
        client.sendall(b"GET /" + b"y" * 1000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert split(read_to_end(client))[0] == 431


def test_headers_that_do_not_end_are_refused(strict):
    with connected(strict) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        time.sleep(0.05)
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                client.sendall(b"y" * 100)
                time.sleep(0.005)
        assert split(read_to_end(client))[0] == 431


def test_headers_that_do_not_come_end_the_connection(strict):
    with connected(strict) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        status, found = split(read_to_end(client))
        assert status == 408
        assert found == {"error": "no whole headers within 0.3 s; send them faster"}


def test_a_connection_that_says_nothing_ends(strict):
    with connected(strict) as client:
        assert split(read_to_end(client))[0] == 408


def test_a_connection_that_only_drips_between_requests_ends(strict):
    with connected(strict) as client:
        client.sendall(GET)
        assert split(client.recv(65536))[0] == 200
        ended = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < ended:
                client.sendall(b"\r\n")
                time.sleep(0.1)
        assert time.monotonic() < ended


def test_a_body_that_does_not_come_ends_the_connection(strict):
    with connected(strict) as client:
        client.sendall(INFER + b"Content-Length: 100\r\n\r\n{")
        status, found = split(read_to_end(client))
        assert (status, found) == (408, {"error": "no whole body within 0.3 s; send it faster"})


def test_an_idle_connection_is_closed(strict):
    with connected(strict) as client:
        client.sendall(GET)
        assert split(client.recv(65536))[0] == 200
        assert client.recv(65536) == b""


def test_a_body_without_a_length_is_bounded_while_it_comes(strict):
    with connected(strict) as client:
        client.sendall(INFER + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(6):
                client.sendall(b"%x\r\n%s\r\n" % (50_000, b" " * 50_000))
        assert split(client.recv(65536)) == (
            413,
            {"error": "body of more than 200000 bytes; at most that many are allowed"},
        )


def test_bodies_together_are_bounded(tmp_path):
    limits = Limits(max_body_bytes=200_000, max_bodies_bytes=250_000)
    with running(tmp_path, free_ports(limits=limits)) as server:
        budget = server.server._app._budget
        with connected(server) as first, connected(server) as second:
            for client in (first, second):
                client.sendall(INFER + b"Transfer-Encoding: chunked\r\n\r\n")
            first.sendall(b"%x\r\n%s\r\n" % (190_000, b" " * 190_000))
            until(lambda: budget.held_bytes == 190_000)
            second.sendall(b"%x\r\n%s\r\n" % (100_000, b" " * 100_000))
            status, found = split(second.recv(65536))
            assert (status, "no room for" in found["error"]) == (503, True)
            first.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert split(first.recv(65536))[0] == 200
        until(lambda: budget.held_bytes == 0)


def test_a_body_too_large_is_refused_before_it_comes(strict):
    with connected(strict) as client:
        client.sendall(INFER + b"Expect: 100-continue\r\nContent-Length: 200001\r\n\r\n")
        answer = read_to_end(client)
        assert b"connection: close" in answer
        assert split(answer) == (
            413,
            {"error": "body of 200001 bytes; at most 200000 are allowed"},
        )


def test_a_body_too_large_that_comes_nevertheless_is_no_headers(server):
    """A client that does not look before it has sent all gets its answer, and may go on."""
    size = Limits().max_body_bytes + 1
    with connected(server) as client:
        client.sendall(INFER + b"Content-Length: %d\r\n\r\n" % size)
        status, answer = split(client.recv(65536))
        assert status == 413
        assert f"body of {size} bytes" in answer["error"]
        piece = bytes(2**20)
        for _ in range(size // len(piece)):
            client.sendall(piece)
        client.sendall(bytes(size % len(piece)) + WHOLE)
        assert split(client.recv(65536))[0] == 200


def test_too_many_connections_are_refused(strict):
    with contextlib.ExitStack() as stack:
        state = strict.server._http.server_state
        until(lambda: not state.connections)
        clients = [stack.enter_context(connected(strict)) for _ in range(3)]
        for client in clients:
            client.sendall(GET)
            assert split(client.recv(65536))[0] == 200
        refused = stack.enter_context(connected(strict))
        assert split(read_to_end(refused)) == (
            503,
            {"error": "more than 3 connections; try later"},
        )
