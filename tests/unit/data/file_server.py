"""An HTTP server of one file, as well- or ill-behaved as a test asks."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock


@dataclass
class FileServer:
    """What is served, and what was asked for.

    Attributes:
        content: The file.
        has_ranges: Whether parts are served.
        etag: Of the file; empty: none is sent.
        modified: Its date; empty: none is sent.
        cuts: Bytes after which the connection of each request in turn is broken.
        answers: HTTP status of each request in turn instead of the file.
        num_answered: Requests from now on that are answered, all later ones with 503; None: all.
        length: What Content-Length says; None: the truth; empty: it is not sent.
        content_type: Of the file.
        shift: Added to the first byte of a part.
        ranges: Range header of each request; empty where it has none.
    """

    content: bytes
    has_ranges: bool = True
    etag: str = '"1"'
    modified: str = ""
    cuts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    num_answered: int | None = None
    length: str | None = None
    content_type: str = "application/octet-stream"
    shift: int = 0
    url: str = ""
    ranges: list[str] = field(default_factory=list)


def _handler(served: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            served.ranges.append(wanted)
            if served.num_answered is not None:
                served.num_answered -= 1
                if served.num_answered < 0:
                    self.send_error(503)
                    return
            if served.answers:
                self.send_error(served.answers.pop(0))
                return
            same = self.headers.get("If-Range") in (None, served.etag, served.modified)
            first = 0
            if wanted and served.has_ranges and same:
                first = int(wanted.removeprefix("bytes=").removesuffix("-")) + served.shift
            if first and first >= len(served.content):
                self.send_error(416)
                return
            body = served.content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Type", served.content_type)
            length = str(len(body)) if served.length is None else served.length
            if length:
                self.send_header("Content-Length", length)
            if first:
                last, size = len(served.content) - 1, len(served.content)
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            if served.etag:
                self.send_header("ETag", served.etag)
            if served.modified:
                self.send_header("Last-Modified", served.modified)
            self.end_headers()
            self.wfile.write(body[: served.cuts.pop(0)] if served.cuts else body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def serving(served: FileServer) -> Iterator[FileServer]:
    """Serve until the block ends; `url` is then that of the file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/file"
    try:
        with mock.patch.dict(os.environ, {"no_proxy": "127.0.0.1"}):
            yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
