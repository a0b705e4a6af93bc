"""A server of the Open Inference Protocol in a process of its own, whose latency is planted.

    python tests/stub_server.py '{"service_ms": 5}'

prints its port, serves until its standard input closes, and knows no more of a request than its
number of rows. With one `service_ms` it is a queue with a single server: an M/D/1 under Poisson
arrivals. It answers to the time that the queue gives, with a timer of the kernel.
"""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import httptools
import msgspec
import numpy as np

from fastdlrm.load.timer import Timer, take_precedence


class Behaviour(msgspec.Struct, forbid_unknown_fields=True):
    service_ms: float = 0.0
    """Time that a query takes the one server."""
    row_us: float = 0.0
    """And for each of its rows."""
    has_queue: bool = True
    """False: queries do not wait for each other."""
    stall_at_query: int = 0
    """When this query comes, counted from 1, the server stands still, so long: """
    stall_ms: float = 0.0
    max_queue: int = 10**9
    """Queries waiting above which one is refused with 503."""
    drop_every: int = 0
    """Every so many queries the connection is closed without an answer."""
    close_every: int = 0
    """Every so many answers say "Connection: close"."""
    silent_every: int = 0
    """Every so many queries get no answer at all."""
    inputs: tuple | str = ({"name": "x", "datatype": "FP32", "shape": [-1]},)
    platform: str = "stub"
    examples: tuple | None = ({"x": 0.5}, {"x": 1.5}, {"x": None})
    refuse: str = ""
    """Answer queries 400 with this text,"""
    refuse_after: int = 0
    """from this one on."""
    wrong_rows: bool = False
    """Answer one score too many."""


class Server:
    def __init__(self, behaviour, loop):
        self.behaviour = behaviour
        self.free_at = 0.0
        self.stalled_until = 0.0
        self.due = deque()
        self.delayed = []
        self.timer = Timer(loop, self.answer_due)
        self.num_queries = 0
        self.num_answers = 0
        self.bodies = {}
        self.answered_at = []

    def take(self, connection, rows, now):
        """A query arrives: when will it be answered?"""
        b = self.behaviour
        self.num_queries += 1
        if b.refuse and self.num_queries > b.refuse_after:
            return connection.reply(400, json.dumps({"error": b.refuse}).encode())
        if b.drop_every and self.num_queries % b.drop_every == 0:
            return connection.transport.abort()
        if b.silent_every and self.num_queries % b.silent_every == 0:
            return None
        if self.num_queries == b.stall_at_query:
            self.stalled_until = now + b.stall_ms / 1e3
        service_s = b.service_ms / 1e3 + rows * b.row_us / 1e6
        if b.has_queue:
            if len(self.due) > b.max_queue:
                return connection.reply(503, b'{"error": "too much"}', "Retry-After: 1\r\n")
            start = max(now, self.free_at, self.stalled_until)
            self.free_at = start + service_s
            self.due.append((self.free_at, connection, rows))
            if len(self.due) == 1:
                self.timer.at(self.free_at)
        else:
            self.due.append((now + service_s, connection, rows))
            self.due = deque(sorted(self.due, key=lambda entry: entry[0]))
            self.timer.at(self.due[0][0])
        return None

    def answer_due(self):
        while self.due and self.due[0][0] <= time.perf_counter():
            _, connection, rows = self.due.popleft()
            self.answered_at.append(time.perf_counter())
            self.num_answers += 1
            closes = (
                self.behaviour.close_every and self.num_answers % self.behaviour.close_every == 0
            )
            connection.reply(200, self.scores(rows), closes=bool(closes))
        if self.due:
            self.timer.at(self.due[0][0])

    def scores(self, rows):
        if rows not in self.bodies:
            count = rows + self.behaviour.wrong_rows
            scores = {"name": "score", "datatype": "FP32", "shape": [count], "data": [0.5] * count}
            self.bodies[rows] = json.dumps({"model_name": "m", "outputs": [scores]}).encode()
        return self.bodies[rows]


class Connection(asyncio.Protocol):
    def __init__(self, server):
        self.server = server
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.now = time.perf_counter()
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.header_length = None
        self.body = []

    def on_url(self, url):
        self.url = url.decode()

    def on_header(self, name, value):
        if name.lower() == b"inference-header-content-length":
            self.header_length = int(value)

    def on_body(self, data):
        self.body.append(data)

    def on_message_complete(self):
        b = self.server.behaviour
        if self.url.endswith("/infer") or self.url.endswith(":rank"):
            found = json.loads(b"".join(self.body)[: self.header_length])
            if "inputs" in found:
                rows = max(entry["shape"][0] for entry in found["inputs"])
            else:
                rows = len(next(iter(found["candidates"].values())))
            self.server.take(self, rows, self.now)
        elif self.url == "/answered":
            self.reply(200, json.dumps(self.server.answered_at).encode())
        elif self.url.startswith("/v1/models/m") and b.examples is not None:
            self.reply(200, json.dumps({"examples": b.examples}).encode())
        elif self.url.startswith("/v2/models/m"):
            self.reply(
                200, json.dumps({"name": "m", "platform": b.platform, "inputs": b.inputs}).encode()
            )
        else:
            self.reply(404, b'{"error": "not here"}')

    def reply(self, status, body, headers="", *, closes=False):
        headers += "Connection: close\r\n" if closes else ""
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
        self.transport.write(head + body)
        if closes:
            self.transport.close()


async def main():
    take_precedence()  # its planted times must hold beside other processes
    loop = asyncio.get_running_loop()
    server = Server(msgspec.json.decode(sys.argv[1], type=Behaviour), loop)
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def answered_at(url):
    """When (by perf_counter) a server of one queue answered each query, in their order."""
    with urllib.request.urlopen(f"{url}/answered") as answer:
        return np.array(json.loads(answer.read()))


@contextmanager
def stub_server(**behaviour):
    """Run one; gives its URL."""
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(behaviour)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate()


if __name__ == "__main__":
    asyncio.run(main())
