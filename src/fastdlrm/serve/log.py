"""The server's log: one JSON line an event on stderr."""

import logging
import sys
import time
from typing import Any, TextIO

import msgspec

_encode = msgspec.json.Encoder(enc_hook=str).encode


class EventLog:
    """Writes events.

    Args:
        stream: Where lines go; None for stderr.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def __call__(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line: time (UTC, ISO 8601), level, event, then the fields in their order."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = {"time": f"{stamp}.{int(now % 1 * 1000):03d}Z", "level": level, "event": event}
        stream = self._stream or sys.stderr
        stream.write(_encode(line | fields).decode() + "\n")
        stream.flush()


class LogBridge(logging.Handler):
    """Carries what libraries say through `logging` into the event log, warnings and worse."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(level=logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a library's message, with its traceback where there is one."""
        trace = {}
        if record.exc_info and record.exc_info[0] is not None:
            trace = {"trace": logging.Formatter().formatException(record.exc_info)}
        self._log(
            "library",
            level=record.levelname.lower(),
            source=record.name,
            message=record.getMessage().strip(),
            **trace,
        )
