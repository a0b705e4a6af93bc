"""A process that has torch and the kernels imported, and forks workers: a new one takes moments.

It is started once, by an interpreter of its own, so that nothing of the front's state is copied
(threads, sockets, a script that is run again). Invariants: it runs one thread, so forks are safe;
it never touches a GPU; it ends when the front does, and all workers with it.
"""

import ctypes
import gc
import importlib
import os
import selectors
import signal
import socket
import sys

from fastdlrm.errors import FastDLRMError
from fastdlrm.serve.messages import (
    NURSERY_BYTES,
    Exited,
    Kill,
    Spawn,
    Spawned,
    encode,
    to_nursery,
)

PR_SET_PDEATHSIG = 1
PRELOADED = ("torch", "fastdlrm.export.model", "fastdlrm.serve.worker")
"""Modules that every worker finds imported."""


def main(fd: int) -> None:
    """Serve until the front's end of the socket closes.

    Args:
        fd: Of the socket to the front.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # ask for GPUs so that forks may use them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front ends its workers, in its time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    Forks(socket.socket(fileno=fd)).run()
    os._exit(0)  # nothing is left to be taken away; libraries would complain on the way


class Forks:
    """Forks workers and waits for their ends.

    Args:
        front: Socket to the front.
    """

    def __init__(self, front: socket.socket) -> None:
        self._front = front
        self._pids: dict[int, int] = {}
        self._told, telling = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(telling)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Until the front is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._front, selectors.EVENT_READ)
            selector.register(self._told, selectors.EVENT_READ)
            while True:
                ready = [key.fd for key, _ in selector.select()]
                if self._told in ready:
                    os.read(self._told, 4096)
                    self._reap()
                if self._front.fileno() in ready and not self._receive():
                    return

    def _receive(self) -> bool:
        content, fds, _, _ = socket.recv_fds(self._front, NURSERY_BYTES, 2)
        if not content:
            return False
        message = to_nursery(content)
        if isinstance(message, Kill):
            for pid, number in self._pids.items():
                if number == message.number:
                    os.kill(pid, signal.SIGKILL)
        else:
            self._fork(message, fds)
        return True

    def _fork(self, message: Spawn, fds: list[int]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            self._be_worker(message, fds, parent)
        for fd in fds:
            os.close(fd)
        self._pids[pid] = message.number
        self._front.send(encode(Spawned(message.number, pid)))

    def _be_worker(self, message: Spawn, fds: list[int], parent: int) -> None:
        """What the forked process does; it does not come back."""
        code = 1
        try:
            end_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._front.close()
            os.close(self._told)
            sys.path[:] = message.path
            worker = importlib.import_module("fastdlrm.serve.worker")
            worker.run(message.task, socket.socket(fileno=fds[0]), fds[1])
            code = 0
        except BaseException:  # noqa: BLE001 the hook writes it; nothing may leave the fork
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self._pids.pop(pid)
            self._front.send(encode(Exited(number, os.waitstatus_to_exitcode(status))))


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends.

    Raises:
        FastDLRMError: The parent has ended already.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise FastDLRMError("the server ended while a worker was started")
