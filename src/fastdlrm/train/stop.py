"""SIGTERM and SIGINT ask a loop to finish its step; a second SIGINT ends it at once."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context in which `requested` turns true once SIGTERM or SIGINT arrives.

    Signals can only be caught by the main thread; elsewhere the context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
