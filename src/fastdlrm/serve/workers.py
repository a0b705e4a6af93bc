"""Worker processes as the front sees them: started, spoken to, ended, their ends noticed.

All are forked by one nursery process (`nursery.py`), which is started with the first and again
should it die. Invariants: an end is reported once, after all that the worker said before.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from fastdlrm.serve.messages import (
    NURSERY_BYTES,
    Exited,
    Kill,
    Spawn,
    Task,
    encode,
    from_nursery,
    from_worker,
    make_pair,
    message_bytes,
)

STARTUP = """import sys
sys.path[:] = {path!r}
from fastdlrm.serve.nursery import main
main({fd})
"""

OnMessage = Callable[[Any], None]
OnEnd = Callable[[str], None]
"""Called with the reason in words, as "killed by signal 9"."""


class WorkerProcess:
    """One worker.

    Args:
        number: Unique in its nursery.
        front: The front's end of its socket.
        longest: Bytes of the longest message.
        on_message: Called with each message.
        on_end: Called once, when it has ended.

    Attributes:
        pid: Its process id; 0 until it is known.
    """

    def __init__(
        self,
        number: int,
        front: socket.socket,
        longest: int,
        on_message: OnMessage,
        on_end: OnEnd,
    ) -> None:
        self.number = number
        self.pid = 0
        self._front = front
        self._buffer = memoryview(bytearray(longest))
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        front.setblocking(False)
        self._loop.add_reader(front.fileno(), self._receive)

    def send(self, message: Any) -> bool:
        """Send a message; False where the worker does not take it: it is dead, or stuck."""
        try:
            self._front.send(encode(message))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close its socket, upon which it ends after the batch it computes."""
        if self._front.fileno() >= 0:
            self._loop.remove_reader(self._front.fileno())
            self._front.close()

    def ended(self, reason: str) -> None:
        """It has ended: read what it said before, then report."""
        while self._receive():
            pass
        self.close()
        self._on_end(reason)

    def _receive(self) -> bool:
        if self._front.fileno() < 0:
            return False
        try:
            length = self._front.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            length = 0
        if length:
            self._on_message(from_worker(self._buffer[:length]))
        else:
            self._loop.remove_reader(self._front.fileno())  # `ended` follows
        return length > 0


class Nursery:
    """Starts workers for all engines of a process, and reports their ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._count = 0

    @property
    def pid(self) -> int:
        """Of its process; 0 where none runs."""
        return 0 if self._process is None else self._process.pid

    def spawn(
        self, task: Task, arena_fd: int, on_message: OnMessage, on_end: OnEnd
    ) -> WorkerProcess:
        """Start a worker; it says `Ready` or `Failed` when it is.

        Args:
            task: What it is to do.
            arena_fd: Of the memory where requests lie.
            on_message: Called with each message of it.
            on_end: Called once, with the reason, when it has ended.

        Raises:
            ServeError: The system lacks what workers need.
        """
        longest = message_bytes(task.max_batch_rows)
        front, back = make_pair(longest)
        nursery = self._running()
        self._count += 1
        worker = WorkerProcess(self._count, front, longest, on_message, on_end)
        self._workers[self._count] = worker
        with back, contextlib.suppress(ConnectionError):  # a dead nursery's reader notices
            message = encode(Spawn(self._count, task, sys.path))
            socket.send_fds(nursery, [message], [back.fileno(), arena_fd])
        return worker

    def kill(self, worker: WorkerProcess) -> None:
        """End a worker at once."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(encode(Kill(worker.number)))

    def start(self) -> None:
        """Begin to import what workers need, so that the first is there sooner."""
        self._running()

    def stop(self) -> None:
        """End the nursery, and every worker that is left."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        front, back = make_pair(NURSERY_BYTES)
        front.setblocking(False)
        command = STARTUP.format(path=sys.path, fd=back.fileno())
        with back:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command], pass_fds=[back.fileno()], stdin=subprocess.DEVNULL
            )
        self._socket = front
        asyncio.get_running_loop().add_reader(front.fileno(), self._receive)
        return front

    def _receive(self) -> None:
        if self._socket is None:
            return
        try:
            content = self._socket.recv(NURSERY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self.stop()
            workers, self._workers = self._workers, {}
            for worker in workers.values():
                worker.ended("the process that starts workers ended")
            return
        message = from_nursery(content)
        if isinstance(message, Exited):
            worker = self._workers.pop(message.number)
            worker.ended(reason_of(message.code))
        else:
            self._workers[message.number].pid = message.pid


def reason_of(code: int) -> str:
    """An exit code in words."""
    if code == -9:
        return "killed by signal 9: by hand, or for want of memory"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
