"""Calls back at a time, within some tens of microseconds.

An event loop's own timers are rounded to milliseconds. On Linux a timer of the kernel wakes the
loop through a file descriptor; elsewhere the loop turns without pause for the last 2 ms.
Times are those of `time.perf_counter`, which all processes of a machine share on Linux.
"""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

_SPIN_S = 0.002
_CLOCK_MONOTONIC = 1  # that of perf_counter
_ABSOLUTE = 1


def take_precedence() -> str:
    """Have a core as soon as this process needs one, where it may: only root may ask for that.

    A mere nice level would not do: a process that computes keeps its core for its time slice.

    Returns:
        "real time", or "normal" where it may not.
    """
    if sys.platform == "linux":
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            return "real time"
    return "normal"


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """One call in the future at a time.

    Args:
        loop: That is to run the call.
        call: Takes nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._handle: asyncio.TimerHandle | asyncio.Handle | None = None
        self._at = 0.0
        self._file = -1
        if sys.platform == "linux":
            self._library = ctypes.CDLL(None, use_errno=True)
            self._file = self._library.timerfd_create(
                _CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC
            )
            if self._file < 0:
                raise OSError(ctypes.get_errno(), "no timer of the kernel")
            loop.add_reader(self._file, self._fire)

    def at(self, when: float) -> None:
        """Call at this time of `perf_counter`, at once where it is past; an earlier one goes."""
        self._at = when
        if self._file < 0:
            self._wait()
            return
        nanoseconds = max(int(when * 1e9), 1)  # 0 would disarm it
        setting = _Setting()
        setting.value.seconds, setting.value.nanoseconds = divmod(nanoseconds, 10**9)
        self._library.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(setting), None)

    def close(self) -> None:
        """Call no more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _fire(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return  # set anew since it woke the loop
        self._call()

    def _wait(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        left = self._at - time.perf_counter()
        if left <= 0:
            self._handle = self._loop.call_soon(self._call)
        elif left < _SPIN_S:
            self._handle = self._loop.call_soon(self._wait)
        else:
            self._handle = self._loop.call_later(left - _SPIN_S, self._wait)
