"""The workers of one engine: loaded, kept alive, brought up to date with deltas.

A worker that dies is replaced at once; one that dies or fails while it loads is tried again after a
pause that doubles. Invariants: a worker is handed to the engine only when it is warm and has every
delta that was applied; what the engine is told of a worker comes in order.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from fastdlrm.errors import ExportError, FastDLRMError, ServeError
from fastdlrm.serve.messages import Applied, Apply, Done, Failed, Problem, Ready, Task, Work
from fastdlrm.serve.workers import Nursery, WorkerProcess

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
LOG = logging.getLogger("fastdlrm.serve")


class PoolUser(Protocol):
    """What a pool reports to; workers by index."""

    def on_ready(self, worker: int, ready: Ready) -> None:
        """A worker is warm; `on_free` follows once it has all deltas."""
        ...

    def on_done(self, worker: int, done: Done) -> None:
        """A worker has scored its oldest work."""
        ...

    def on_busy(self, worker: int) -> None:
        """A worker takes no new work for a while; `on_free` follows, or `on_lost`."""
        ...

    def on_free(self, worker: int) -> None:
        """A worker takes work again."""
        ...

    def on_lost(self, worker: int, reason: str) -> None:
        """A worker that was ready has ended."""
        ...

    def on_failed(self, problem: FastDLRMError) -> None:
        """A worker could not be started."""
        ...


class Member:
    """One place in the pool.

    Attributes:
        process: The worker that fills it.
        is_ready: Whether that is warm.
        num_deltas: Deltas it has.
        num_failures: Starts in a row that failed.
        problem: What the last of them failed by.
        reason: Why it was killed by us; empty: it was not.
        applied: Waits for the answer to a delta.
        timer: Ends a start that takes too long, or begins the next one.
    """

    def __init__(self) -> None:
        self.process: WorkerProcess | None = None
        self.is_ready = False
        self.num_deltas = 0
        self.num_failures = 0
        self.problem: FastDLRMError | None = None
        self.reason = ""
        self.applied: asyncio.Future[Applied] | None = None
        self.timer: asyncio.TimerHandle | None = None


class Pool:
    """Keeps as many workers as it was made for.

    Args:
        tasks: What each is to do.
        nursery: Starts them.
        user: Is told.
        arena_fd: Memory where requests lie.
        start_timeout_s: A start that takes longer failed.

    Attributes:
        num_restarts: Workers that were replaced.
        sequence: Of the last delta that every worker has; 0: none.
        created_s: When that was made, in seconds since 1970.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        nursery: Nursery,
        user: PoolUser,
        *,
        arena_fd: int,
        start_timeout_s: float,
    ) -> None:
        self.num_restarts = 0
        self.sequence = 0
        self.created_s: float | None = None
        self._tasks = list(tasks)
        self._nursery = nursery
        self._user = user
        self._arena_fd = arena_fd
        self._start_timeout_s = start_timeout_s
        self._members = [Member() for _ in tasks]
        self._deltas: list[str] = []
        self._applying = asyncio.Lock()
        self._is_stopping = False
        self._all_ended = asyncio.Event()

    @property
    def num_ready(self) -> int:
        """Workers that compute."""
        return sum(member.is_ready for member in self._members)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers there are; 0 for one that is being forked."""
        return [m.process.pid for m in self._members if m.process is not None]

    @property
    def problem(self) -> FastDLRMError | None:
        """Why no worker computes; None where one does, or is on its way."""
        if any(m.is_ready or m.problem is None for m in self._members):
            return None
        return next(member.problem for member in self._members)

    def start(self) -> None:
        """Start all workers."""
        for index in range(len(self._members)):
            self._spawn(index)

    def send(self, worker: int, work: Work) -> None:
        """Give a worker work; one that does not take it is ended, and reported as lost."""
        member = self._members[worker]
        if member.process is not None and not member.process.send(work):
            self.kill(worker, "it takes no messages")

    def kill(self, worker: int, reason: str) -> None:
        """End a worker, for it to be replaced."""
        member = self._members[worker]
        if member.process is not None and not member.reason:
            member.reason = reason
            self._nursery.kill(member.process)

    async def apply(self, path: str) -> None:
        """Apply a delta to all workers, one after the other, while the others compute.

        Raises:
            ExportError: The first worker refused it; no worker has it.
            ServeError: No worker could say.
        """
        async with self._applying:
            found = (
                index
                for index, member in enumerate(self._members)
                if member.is_ready and member.num_deltas == len(self._deltas)
            )
            first = next(found, None)
            if first is None:
                raise ServeError(f"{path}: no worker runs that a delta could be applied to")
            answer = await self._ask(first, path)
            if answer.problem is not None:
                self._user.on_free(first)
                raise error_of(answer.problem)
            self._deltas.append(path)
            self._members[first].num_deltas += 1
            self._user.on_free(first)
            for index, member in enumerate(self._members):
                if index != first and member.is_ready:
                    await self._catch_up(index)
            self.sequence, self.created_s = answer.sequence, answer.created_s

    async def stop(self, timeout_s: float) -> None:
        """End all workers: at once those that do not end by themselves in time."""
        self._is_stopping = True
        for member in self._members:
            if member.timer is not None:
                member.timer.cancel()
            if member.process is not None:
                member.process.close()
                if not member.is_ready:
                    self._nursery.kill(member.process)
        self._note_ends()
        try:
            await asyncio.wait_for(self._all_ended.wait(), timeout_s)
        except TimeoutError:
            for member in self._members:
                if member.process is not None:
                    self._nursery.kill(member.process)
            await self._all_ended.wait()

    def _spawn(self, index: int) -> None:
        member = self._members[index]
        member.num_deltas = 0
        member.reason = ""
        member.process = self._nursery.spawn(
            self._tasks[index],
            self._arena_fd,
            lambda message: self._on_message(index, message),
            lambda reason: self._on_end(index, reason),
        )
        loop = asyncio.get_running_loop()
        member.timer = loop.call_later(
            self._start_timeout_s,
            self.kill,
            index,
            f"not ready after {self._start_timeout_s:g} s; raise workers.start_timeout_s",
        )

    def _on_message(self, index: int, message: Ready | Failed | Done | Applied) -> None:
        member = self._members[index]
        if isinstance(message, Done):
            self._user.on_done(index, message)
        elif isinstance(message, Applied):
            if member.applied is not None and not member.applied.done():
                member.applied.set_result(message)
        elif isinstance(message, Failed):
            member.problem = error_of(message.problem)
        else:
            self._on_ready(index, message)

    def _on_ready(self, index: int, ready: Ready) -> None:
        member = self._members[index]
        if member.timer is not None:
            member.timer.cancel()
        member.is_ready = True
        member.num_failures = 0
        member.problem = None
        self._tasks[index] = msgspec.structs.replace(self._tasks[index], check=False)
        self._user.on_ready(index, ready)
        if member.num_deltas < len(self._deltas):
            task = asyncio.create_task(self._bring_up(index))
            task.add_done_callback(lambda done: done.exception())
        else:
            self._user.on_free(index)

    async def _bring_up(self, index: int) -> None:
        """Apply what was applied to the others while this one was loading."""
        async with self._applying:
            await self._catch_up(index)

    async def _catch_up(self, index: int) -> None:
        """Apply the deltas that a worker lacks; one that cannot is replaced."""
        member = self._members[index]
        process = member.process
        while member.num_deltas < len(self._deltas):
            path = self._deltas[member.num_deltas]
            try:
                answer = await self._ask(index, path)
            except ServeError:
                return  # it died, and is replaced by one that has them all
            if answer.problem is not None:
                self.kill(index, f"{path} does not fit it: {answer.problem.text}")
                return
            member.num_deltas += 1
        if member.process is process and member.is_ready:
            self._user.on_free(index)

    async def _ask(self, index: int, path: str) -> Applied:
        """Have a worker apply a delta.

        Raises:
            ServeError: It died.
        """
        member = self._members[index]
        self._user.on_busy(index)
        member.applied = asyncio.get_running_loop().create_future()
        try:
            if member.process is None or not member.process.send(Apply(path)):
                self.kill(index, "it takes no messages")
            return await member.applied
        finally:
            member.applied = None

    def _on_end(self, index: int, reason: str) -> None:
        member = self._members[index]
        was_ready, member.is_ready = member.is_ready, False
        pid = member.process.pid if member.process is not None else 0
        member.process = None
        if member.timer is not None:
            member.timer.cancel()
        words = f"worker {index} (pid {pid}) ended: {member.reason or reason}"
        if member.applied is not None and not member.applied.done():
            member.applied.set_exception(ServeError(f"{words}, while it applied a delta"))
        if self._is_stopping:
            self._note_ends()
        elif was_ready:
            LOG.warning("%s; it is replaced", words)
            self.num_restarts += 1
            self._user.on_lost(index, words)
            self._spawn(index)
        else:
            self._start_failed(index, words)

    def _start_failed(self, index: int, words: str) -> None:
        member = self._members[index]
        pause_s = min(FIRST_PAUSE_S * 2**member.num_failures, LONGEST_PAUSE_S)
        member.num_failures += 1
        if member.problem is None or member.reason:
            member.problem = ServeError(f"{words}, before its model was loaded")
        LOG.error("worker %d: %s; next try in %g s", index, member.problem, pause_s)
        member.timer = asyncio.get_running_loop().call_later(pause_s, self._spawn, index)
        self._user.on_failed(member.problem)

    def _note_ends(self) -> None:
        if all(member.process is None for member in self._members):
            self._all_ended.set()


def error_of(problem: Problem) -> FastDLRMError:
    """A worker's error as it is raised here; what is no error of ours is the server's fault."""
    kinds = {"ExportError": ExportError, "ServeError": ServeError}
    return kinds.get(problem.kind, ServeError)(problem.text)


def staleness_s(created_s: float | None) -> float | None:
    """Age of embeddings made at a time since 1970; None: unknown."""
    return None if created_s is None else max(time.time() - created_s, 0.0)


def cores_of(num_workers: int) -> list[int]:
    """The core each worker stays on; -1 for all where they are more than the cores allowed."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:num_workers] if num_workers <= len(allowed) else [-1] * num_workers
