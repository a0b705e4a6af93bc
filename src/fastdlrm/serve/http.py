"""A request and a response of HTTP as the routes see them, and how a body is read.

Invariants: no body larger than allowed is ever held, compressed or not; a response goes out with
its length, in one piece.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from fastdlrm.errors import Overloaded, RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
CLOSE = (b"connection", b"close")

_THREAD_BYTES = 256 * 1024  # a compressed body from this size on is opened beside the event loop


class Refused(RequestError):
    """A request that HTTP itself refuses.

    Attributes:
        status: HTTP status.
        headers: What the answer says besides.
    """

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class BodyBudget:
    """Memory for all bodies that came in more than one piece, together.

    Args:
        max_bytes: Most that is held at once.

    Attributes:
        held_bytes: What is held now.
    """

    __slots__ = ("held_bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Hold more.

        Raises:
            Overloaded: There is no room.
        """
        if self.held_bytes + num_bytes > self.max_bytes:
            raise Overloaded(
                f"bodies of {self.held_bytes} bytes are held, {self.max_bytes} may be: no room for "
                f"{num_bytes} more; try again later"
            )
        self.held_bytes += num_bytes


class Response:
    """What goes back.

    Args:
        body: All of it.
        status: HTTP status.
        content_type: Of the body.
        headers: Further ones.
    """

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: bytes = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers

    async def send(self, send: Send) -> None:
        """Hand it to the server."""
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json(value: Any, status: int = 200) -> Response:
    """A response of JSON."""
    return Response(msgspec.json.encode(value), status=status)


class Request:
    """What came.

    Args:
        scope: Of ASGI.
        receive: Of ASGI.
        budget: Bounds what bodies hold; `release` gives back what this one took.

    Attributes:
        arrived_ns: `perf_counter_ns` when its headers were there.
        model: Name in its path; empty where the path names none.
        version: Number of a version in its path; empty where it names none.
        is_read: Whether the whole body was received.
    """

    __slots__ = (
        "_budget",
        "_headers",
        "_held_bytes",
        "_receive",
        "arrived_ns",
        "is_read",
        "model",
        "scope",
        "version",
    )

    def __init__(self, scope: Scope, receive: Receive, budget: BodyBudget) -> None:
        self.arrived_ns = time.perf_counter_ns()
        self.scope = scope
        self.model = ""
        self.version = ""
        self.is_read = False
        self._receive = receive
        self._budget = budget
        self._held_bytes = 0
        self._headers: dict[bytes, bytes] = dict(scope["headers"])

    def header(self, name: bytes) -> bytes | None:
        """A header's value by its name in lower case."""
        return self._headers.get(name)

    async def body(self, max_bytes: int) -> bytes:
        """Read the body, and open it where it is compressed.

        Args:
            max_bytes: Most that is allowed, before and after.

        Raises:
            Refused: 413 too large, 415 or 400 its compression, 400 cut short.
            Overloaded: Bodies of others hold all memory there is for them.
        """
        length = self._headers.get(b"content-length")
        if length is not None and int(length) > max_bytes:
            raise Refused(413, f"body of {int(length)} bytes; at most {max_bytes} are allowed")
        content = await self._read(max_bytes)
        encoding = self._headers.get(b"content-encoding")
        if encoding is None or encoding == b"identity":
            return content
        if len(content) < _THREAD_BYTES:
            return decompress(content, encoding, max_bytes)
        return await asyncio.to_thread(decompress, content, encoding, max_bytes)

    def release(self) -> None:
        """Its body is not needed any more."""
        self._budget.held_bytes -= self._held_bytes
        self._held_bytes = 0

    async def _read(self, max_bytes: int) -> bytes:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.is_read = True
            content: bytes = message.get("body", b"")
            _require_size(len(content), max_bytes)
            return content
        pieces, size = [], 0
        while message["type"] == "http.request":
            piece = message.get("body", b"")
            pieces.append(piece)
            size += len(piece)
            _require_size(size, max_bytes)
            self._budget.take(len(piece))
            self._held_bytes = size
            if not message.get("more_body", False):
                self.is_read = True
                return b"".join(pieces)
            message = await self._receive()
        raise Refused(400, "the connection was closed before the body ended")


def decompress(content: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Open a compressed body.

    Args:
        content: As it came.
        encoding: Value of the header Content-Encoding.
        max_bytes: Most that may come out.

    Raises:
        Refused: 415 for another encoding, 400 damaged, 413 too large.
    """
    if encoding not in (b"gzip", b"deflate"):
        raise Refused(
            415,
            f"Content-Encoding {encoding.decode('latin-1')!r}; gzip, deflate or none is allowed",
        )
    # 47: a header of gzip or zlib, whichever is there
    stream = zlib.decompressobj(47)
    try:
        opened = stream.decompress(content, max_bytes + 1)
    except zlib.error as problem:
        raise Refused(
            400, f"body is not {encoding.decode()} as its Content-Encoding says: {problem}"
        ) from problem
    _require_size(len(opened), max_bytes)
    if not stream.eof or stream.unused_data:
        raise Refused(400, f"body is not one whole {encoding.decode()} stream; it is cut or longer")
    return opened


def _require_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Refused(413, f"body of more than {max_bytes} bytes; at most that many are allowed")
