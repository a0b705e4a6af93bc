"""One HTTP/1.1 connection: uvicorn's, with bounds on headers, their time, and the connections.

A connection that is open costs a file and some kilobytes, so what a client may hold open without
asking anything is bounded: `Connection.sweep` closes those whose headers do not come.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of `Connection`; meanings as in `Http` of the config."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float


class Connection(HttpToolsProtocol):
    """uvicorn's connection, made by a subclass that sets `limits`."""

    limits: ConnectionLimits
    refused: int = 0
    """Connections refused because there were too many, of all instances."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        self._header_bytes = 0
        self._waits_since: float | None = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            type(self).refused += 1
            self.refuse(503, f"more than {self.limits.max_connections} connections; try later")

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self.transport.is_closing():
            return
        between_requests = self.cycle is None or self.cycle.response_complete
        was_waiting = self._waits_since is not None
        if between_requests and not was_waiting:
            self._waits_since = self.loop.time()
        super().data_received(data)
        if was_waiting and self._waits_since is not None:
            self._count(len(data))  # headers that do not end: the parser would hold any number

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._header_bytes = 0
        self._waits_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """A piece of the path."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """All headers are there: start answering."""
        self._waits_since = None
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there."""
        if self.cycle is not None:
            super().on_message_complete()

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

    def _count(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes
        if self._header_bytes > self.limits.max_header_bytes and not self.transport.is_closing():
            self.refuse(
                431, f"headers of more than {self.limits.max_header_bytes} bytes; send fewer"
            )

    def late(self, now: float) -> bool:
        """Whether headers should have come by now (time of the event loop)."""
        since = self._waits_since
        return since is not None and now - since > self.limits.header_timeout_s

    @staticmethod
    def sweep(connections: Iterable[Any], now: float) -> int:
        """Answer 408 to connections whose headers are late, and close them; how many."""
        late = [c for c in connections if isinstance(c, Connection) and c.late(now)]
        for connection in late:
            if not connection.transport.is_closing():
                limit = connection.limits.header_timeout_s
                connection.refuse(408, f"no whole request within {limit:g} s")
        return len(late)
