"""One HTTP/1.1 connection: uvicorn's, with bounds on what it may hold and how long.

Invariants: headers and bodies that do not come in time end the connection (`sweep`, called now and
then: a timer a request would cost more than the request); a response leaves in one write; when the
client goes, the task that answers it is cancelled.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

CONNECTION = "fastdlrm.connection"
"""Key of the ASGI scope that holds the `Connection`."""
_INTERIM = b"HTTP/1.1 1"


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of `Connection`; meanings as in `Http` of the config."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float


class Connection(HttpToolsProtocol):
    """uvicorn's connection, made by a subclass that sets `limits`.

    Attributes:
        answering: The task that answers the request under way; whoever answers sets it.
        is_gone: Whether the client closed the connection.
    """

    limits: ConnectionLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        self.answering: asyncio.Task[Any] | None = None
        self.is_gone = False
        self._header_bytes = 0
        self._headers_since: float | None = self.loop.time()
        self._body_since: float | None = None
        self._writer = _Writer(transport)
        if len(self.connections) > self.limits.max_connections:
            self.refuse(503, f"more than {self.limits.max_connections} connections; try later")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self.is_gone = True
        super().connection_lost(exc)
        if self.answering is not None:
            self.answering.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self.transport.is_closing():
            return
        was_waiting = self._headers_since is not None
        is_between = self.cycle is None or self.cycle.response_complete
        if not was_waiting and is_between and self._body_since is None:
            self._headers_since = self.loop.time()
        super().data_received(data)
        if was_waiting and self._headers_since is not None:
            self._header_bytes += len(data)  # of headers that do not end, the parser holds all
            self._bound(self._header_bytes)

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        self._header_bytes = 0
        self._headers_since = self.loop.time()

    def on_headers_complete(self) -> None:
        """All headers are there: start answering."""
        self._body_since, self._headers_since = self._headers_since, None
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
        self._bound(size)
        if not self.transport.is_closing():
            super().on_headers_complete()
            self.cycle.transport = self._writer  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there."""
        self._body_since = None
        if self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is given."""
        self.answering = None
        self._writer.end()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        if not self.transport.is_closing():
            self.refuse(400, msg)

    def refuse(self, status: int, message: str) -> None:
        """Answer and close, outside any request."""
        body = msgspec.json.encode({"error": message})
        head = (
            b"content-type: application/json\r\nconnection: close\r\n"
            b"retry-after: 1\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def late(self, now: float) -> str:
        """What should have come by now (time of the event loop); empty: nothing."""
        limits = self.limits
        if self._headers_since is not None and now - self._headers_since > limits.header_timeout_s:
            return f"no whole headers within {limits.header_timeout_s:g} s; send them faster"
        if self._body_since is not None and now - self._body_since > limits.body_timeout_s:
            return f"no whole body within {limits.body_timeout_s:g} s; send it faster"
        return ""

    @staticmethod
    def sweep(connections: Iterable[Any], now: float) -> int:
        """Answer 408 to connections that are late, and close them; how many."""
        num_late = 0
        for connection in connections:
            if isinstance(connection, Connection) and (message := connection.late(now)):
                num_late += 1
                if not connection.transport.is_closing():
                    connection.refuse(408, message)
        return num_late

    def _bound(self, header_bytes: int) -> None:
        limit = self.limits.max_header_bytes
        if header_bytes > limit and not self.transport.is_closing():
            self.refuse(431, f"headers of more than {limit} bytes; send fewer")


class _Writer:
    """Holds the head of a response until its body: one call of the system, and one packet."""

    __slots__ = ("_head", "_is_open", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._is_open = False

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif not self._is_open and not data.startswith(_INTERIM):
            self._head, self._is_open = data, True
            return
        self._transport.write(data)

    def end(self) -> None:
        self._is_open = False
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.end()
        self._transport.close()
