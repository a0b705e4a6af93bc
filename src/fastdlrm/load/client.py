"""Connections of HTTP/1.1 that send ready-made requests and note when each was sent and answered.

A request is one write; a connection carries one request at a time and is kept. Nothing is decoded
but the status: a generator must not be what is measured.
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from typing import NamedTuple, Protocol, cast

import httptools

from fastdlrm.load.samples import BROKEN

SPARE = 8
"""Free connections below which another is opened in advance."""
IDLE_S = 1.0
"""A connection idle for longer may be closed by the server just as it is used: then, and only then,
the request is sent again on another."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int
    is_tls: bool


class Recorder(Protocol):
    """What a client tells."""

    def sent(self, query: int, at: float) -> None:
        """A query was handed to the kernel."""

    def done(self, query: int, status: int, at: float) -> None:
        """It was answered, or failed."""


class Client:
    """A pool of connections to one server, the last used first.

    Args:
        address: Of the server.
        recorder: Told what happens.
        max_connections: Most at a time.
    """

    def __init__(self, address: Address, recorder: Recorder, max_connections: int) -> None:
        self._address = address
        self._recorder = recorder
        self._max = max_connections
        self._free: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._waiting: deque[tuple[int, memoryview]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls = ssl.create_default_context() if address.is_tls else None
        self._is_closed = False
        self.num_open = 0
        self.num_opening = 0
        self.most_open = 0
        self.num_waited = 0

    async def open(self, count: int) -> None:
        """Open connections before the run.

        Raises:
            OSError: The server is not there.
        """
        self.num_opening += min(count, self._max)
        await asyncio.gather(*(self._connect() for _ in range(self.num_opening)))

    def send(self, query: int, request: memoryview) -> None:
        """Send a request now, or as soon as a connection is free."""
        if self._free and not self._waiting:
            self._free.pop().send(query, request)
        else:
            if self.num_open + self.num_opening >= self._max:
                self.num_waited += 1
            self._waiting.append((query, request))
        if len(self._free) + self.num_opening < SPARE + len(self._waiting):
            self._open_another()

    def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        for connection in self._open:
            connection.abort()
        self._free.clear()

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self, self._recorder),
                self._address.host,
                self._address.port,
                ssl=self._tls,
            )
        finally:
            self.num_opening -= 1

    def _open_another(self) -> None:
        if self.num_open + self.num_opening >= self._max or self._is_closed:
            return
        self.num_opening += 1
        task = asyncio.get_running_loop().create_task(self._try_connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_connect(self) -> None:
        try:
            await self._connect()
        except OSError:
            # Whoever waits would wait for ever, were no connection left to become free.
            if self._waiting and self.num_open == 0:
                query, _ = self._waiting.popleft()
                self._recorder.done(query, BROKEN, time.perf_counter())

    def opened(self, connection: "_Connection") -> None:
        """A connection is there."""
        self._open.add(connection)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        self.freed(connection)

    def freed(self, connection: "_Connection") -> None:
        """A connection has nothing to do."""
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: "_Connection", again: tuple[int, memoryview] | None) -> None:
        """A connection is gone; `again` is the request it never carried."""
        self._open.discard(connection)
        self.num_open -= 1
        if connection in self._free:
            self._free.remove(connection)
        if self._is_closed:
            return
        if again is not None:
            self.send(*again)
        elif self._waiting:
            self._open_another()


class _Connection(asyncio.Protocol):
    __slots__ = (
        "_client",
        "_freed_at",
        "_got_bytes",
        "_now",
        "_parser",
        "_query",
        "_recorder",
        "_request",
        "_transport",
        "_was_idle",
    )

    def __init__(self, client: Client, recorder: Recorder) -> None:
        self._client = client
        self._recorder = recorder
        self._parser = httptools.HttpResponseParser(self)
        self._query: int | None = None
        self._request: memoryview | None = None
        self._now = 0.0
        self._freed_at = 0.0
        self._got_bytes = False
        self._was_idle = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        plug = transport.get_extra_info("socket")
        if plug is not None:
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._freed_at = time.perf_counter()
        self._client.opened(self)

    def send(self, query: int, request: memoryview) -> None:
        now = time.perf_counter()
        self._was_idle = now - self._freed_at > IDLE_S
        self._query = query
        self._request = request
        self._got_bytes = False
        self._transport.write(request)
        self._recorder.sent(query, now)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        self._got_bytes = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail()
            self._transport.abort()

    def on_message_complete(self) -> None:
        query, self._query = self._query, None
        if query is None:
            return  # an answer that nothing asked for
        status = self._parser.get_status_code()
        self._request = None
        if self._parser.should_keep_alive():
            self._freed_at = self._now
            self._client.freed(self)
        else:
            self._transport.close()
        self._recorder.done(query, status, self._now)

    def connection_lost(self, problem: Exception | None) -> None:
        again = None
        query = self._query
        if query is not None and self._was_idle and not self._got_bytes and self._request:
            again = (query, self._request)
            self._query = None
        self._now = time.perf_counter()
        self._fail()
        self._client.lost(self, again)

    def abort(self) -> None:
        self._transport.abort()

    def _fail(self) -> None:
        query, self._query = self._query, None
        if query is not None:
            self._recorder.done(query, BROKEN, self._now)
