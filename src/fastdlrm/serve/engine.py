"""One version of a model as it is served: its workers, its queue, and the memory between.

Invariants: each query submitted ends once, by scores or by an error, no later than a tick after its
deadline; its memory is free again once no worker can read it; everything here runs on one event
loop, and nothing of it waits.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdlrm.errors import (
    DeadlineExceeded,
    FastDLRMError,
    Overloaded,
    RequestError,
    ServeError,
)
from fastdlrm.serve.arena import Arena
from fastdlrm.serve.batcher import Batch, Batcher, Limits
from fastdlrm.serve.cost import CostModel
from fastdlrm.serve.messages import Done, Problem, Ready, Work
from fastdlrm.serve.observer import EngineStatistics, Observer
from fastdlrm.serve.options import EngineOptions, tasks_of
from fastdlrm.serve.pool import Pool, error_of, staleness_s
from fastdlrm.serve.query import Query, Scores
from fastdlrm.serve.waiting import Entry
from fastdlrm.serve.workers import Nursery

TICK_S = 0.02
"""How often deadlines and hung workers are looked for."""


class Pending:
    """A query without an answer, and where its inputs lie."""

    __slots__ = ("block", "compute_ns", "encode_ns", "entry", "future", "scores", "size")

    def __init__(self, entry: Entry, block: int, size: int) -> None:
        self.entry = entry
        self.block = block
        self.size = size
        self.future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self.scores: NDArray[np.float32] = np.empty(entry.num_rows, np.float32)
        self.encode_ns = self.compute_ns = 0


class Engine:
    """Serves one version of a model; made by `start`.

    Args:
        name: The model's.
        version: Its.
        folder: Where it lies.
        options: How to run it.
        nursery: Starts the workers.
        observer: Is told; None: nobody.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        version: str,
        options: EngineOptions,
        nursery: Nursery,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.options = options
        self.examples: Sequence[Mapping[str, Any]] = ()
        self._observer = observer
        self._arena = Arena(options.arena_bytes)
        self._batcher = Batcher(
            Limits(
                max_batch_rows=options.max_batch_rows,
                max_queue_rows=options.max_queue_rows,
                max_queue_delay_s=options.max_queue_delay_s,
                depth=options.depth,
                hang_timeout_s=options.hang_timeout_s,
            ),
            options.num_workers,
        )
        self._pool = Pool(
            tasks_of(folder, options),
            nursery,
            self,
            arena_fd=self._arena.fd,
            start_timeout_s=options.start_timeout_s,
        )
        self._pending: dict[int, Pending] = {}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drained = asyncio.Event()
        self._tick: asyncio.TimerHandle | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._has_measures = False
        self._refuses = ""
        self._num_answered = self._num_failed = self._num_cancelled = self._num_rows = 0

    @classmethod
    async def start(
        cls,
        folder: Path,
        name: str,
        version: str,
        options: EngineOptions,
        nursery: Nursery,
        observer: Observer | None = None,
    ) -> "Engine":
        """Load a model in all workers, check it and warm it.

        Args:
            folder: An exported model.
            name: What requests call it.
            version: Its version.
            options: How to run it.
            nursery: Starts the workers; shared by all engines of a process.
            observer: Is told what it does.

        Raises:
            ExportError: The model cannot be served.
            ServeError: A worker died, or was not ready in time.
        """
        engine = cls(folder, name, version, options, nursery, observer)
        try:
            engine._pool.start()
            await engine._started
        except BaseException:
            await engine.stop()
            raise
        return engine

    @property
    def sequence(self) -> int:
        """Of the last delta that all workers have; 0: none."""
        return self._pool.sequence

    @property
    def staleness_s(self) -> float | None:
        """Age of the last delta that all workers have; None: there is none."""
        return staleness_s(self._pool.created_s)

    @property
    def pids(self) -> list[int]:
        """Process ids of its workers."""
        return self._pool.pids

    async def submit(self, query: Query) -> Scores:
        """Score a query; cancelling this drops it.

        Raises:
            RequestError: A value is wrong, or the inputs are larger than the arena.
            Overloaded: It would not be answered in time, or there is no room for it.
            DeadlineExceeded: Its deadline passed while it waited.
            ServeError: The workers failed.
        """
        if self._refuses:
            raise Overloaded(f"model {self.name!r} version {self.version} {self._refuses}")
        if (problem := self._pool.problem) is not None:
            raise self._out_of_work(problem)
        if not query.num_rows:
            none = np.empty(0, np.float32)
            return Scores(scores=none, queue_ns=0, encode_ns=0, compute_ns=0)
        now = monotonic()
        pending = self._admit(query, now)
        self._pump(now)
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._on_tick)
        try:
            return await pending.future
        except asyncio.CancelledError:
            if not pending.entry.is_ended:
                self._num_cancelled += 1
                self._batcher.end(pending.entry)
                self._release(pending.entry)
            raise

    async def apply(self, path: Path) -> int:
        """Apply a delta to all workers.

        Returns:
            Its sequence number.

        Raises:
            ExportError: It does not follow the last one, or does not fit; nothing has changed.
            ServeError: The worker it was tried on died.
        """
        await self._pool.apply(str(path))
        return self._pool.sequence

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Take no more queries and answer those there are.

        Args:
            timeout_s: How long to wait; None: as long as it takes.

        Returns:
            Whether all are answered.
        """
        self._refuses = "is being replaced or stopped; try again"
        self._batcher.is_draining = True
        self._pump(monotonic())
        self._note_drained()
        try:
            await asyncio.wait_for(self._drained.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def stop(self, timeout_s: float = 5.0) -> None:
        """End the workers and free all it holds; queries without an answer fail."""
        self._refuses = "is stopped"
        for timer in (self._tick, self._wake):
            if timer is not None:
                timer.cancel()
        stopped = ServeError(f"model {self.name!r} version {self.version} was stopped")
        for pending in list(self._pending.values()):
            self._fail(pending.entry, stopped)
        await self._pool.stop(timeout_s)
        self._pending.clear()
        self._arena.close()

    def statistics(self) -> EngineStatistics:
        """What it did, and how it is now."""
        batcher = self._batcher
        return EngineStatistics(
            num_answered=self._num_answered,
            num_failed=self._num_failed,
            num_cancelled=self._num_cancelled,
            refused=dict(batcher.refused),
            flushes=dict(batcher.flushes),
            num_rows=self._num_rows,
            num_in_flight=batcher.num_live,
            num_running=batcher.num_running,
            queue_rows=batcher.queue_rows,
            num_workers=self._pool.num_ready,
            num_restarts=self._pool.num_restarts,
            arena_used_bytes=self._arena.num_used,
            batch_s=batcher.cost.batch_s,
            row_s=batcher.cost.row_s,
        )

    def on_ready(self, worker: int, ready: Ready) -> None:
        """A worker is warm; `on_free` follows."""
        if not self._has_measures:
            self._has_measures = True
            self._batcher.cost = CostModel(ready.measured)
            self.examples = ready.examples
        if self._pool.num_ready == self.options.num_workers and not self._started.done():
            self._started.set_result(None)

    def on_done(self, worker: int, done: Done) -> None:
        """A worker has scored its oldest batch."""
        now = monotonic()
        batch = self._batcher.finished(worker, now, done.busy_ns * 1e-9)
        scores = np.frombuffer(done.scores, np.float32)
        start = 0
        for index, part in enumerate(batch.parts):
            entry = part.entry
            problem = done.problems.get(index) if done.problems else None
            if problem is not None:
                self._fail(entry, request_error_of(problem, worker))
            else:
                stop = start + part.stop - part.start
                if not entry.is_ended:
                    pending = self._pending[entry.id]
                    pending.scores[part.start : part.stop] = scores[start:stop]
                    pending.encode_ns = max(pending.encode_ns, done.encode_ns)
                    pending.compute_ns = max(pending.compute_ns, done.compute_ns)
                    if not entry.parts_left:
                        self._answer(pending, now)
                start = stop
            self._release(entry)
        self._pump(now)

    def on_busy(self, worker: int) -> None:
        """A worker takes no new batches for a while."""
        self._batcher.close(worker)

    def on_free(self, worker: int) -> None:
        """A worker takes batches."""
        self._batcher.open(worker)
        self._pump(monotonic())

    def on_lost(self, worker: int, reason: str) -> None:
        """A worker died: what it had goes to others, once."""
        entries = self._batcher.entries_of(worker)
        for entry in self._batcher.lost(worker):
            self._fail(
                entry, ServeError(f"{reason}; a worker before it died of the same rows: check them")
            )
        for entry in entries:
            self._release(entry)
        self._pump(monotonic())

    def on_failed(self, problem: FastDLRMError) -> None:
        """A worker could not be started."""
        if not self._started.done():
            self._started.set_exception(problem)
        elif (found := self._pool.problem) is not None:
            for pending in list(self._pending.values()):
                self._fail(pending.entry, self._out_of_work(found))

    def _admit(self, query: Query, now: float) -> Pending:
        """Queue a query and write its inputs to the arena."""
        batcher, size = self._batcher, query.payload.size
        if size > self._arena.size:
            raise RequestError(
                f"inputs of {size} bytes; {self._arena.size} are allowed: send fewer rows, or "
                "raise batching.arena_bytes"
            )
        entry = batcher.add(query.num_rows, query.deadline_s, query.priority, now)
        block = self._arena.allocate(size)
        if block is None:
            batcher.end(entry)
            batcher.refused["arena"] += 1
            raise Overloaded(
                f"no room for inputs of {size} bytes: {self._arena.num_used} of "
                f"{self._arena.size} are in use; try again later",
                retry_after_s=max(entry.promised_s - now, 1e-3),
            )
        query.payload.write_into(self._arena.view(block, size))
        pending = self._pending[entry.id] = Pending(entry, block, size)
        return pending

    def _pump(self, now: float) -> None:
        """Send what can be sent."""
        batcher = self._batcher
        while (batch := batcher.take(now)) is not None:
            self._send(batch)
        if batcher.dropped:
            dropped, batcher.dropped = batcher.dropped, []
            for entry in dropped:
                self._fail(entry, self._too_late(entry, now))
        if self.options.max_queue_delay_s:
            self._set_wake(now)

    def _send(self, batch: Batch) -> None:
        pending = self._pending
        parts = []
        for part in batch.parts:
            query = pending[part.entry.id]
            parts.append((query.block, query.size, part.start, part.stop))
        self._num_rows += batch.num_rows
        self._pool.send(batch.worker, Work(parts))
        if self._observer is not None:
            fill = batch.num_rows / self.options.max_batch_rows
            self._observer.flushed(batch.reason, batch.num_rows, fill)

    def _answer(self, pending: Pending, now: float) -> None:
        """Give a query its scores, or say that they came too late to be of use."""
        entry = pending.entry
        self._batcher.complete(entry, now)
        if now >= entry.deadline_s:
            self._num_failed += 1
            if not pending.future.done():
                pending.future.set_exception(self._too_late(entry, now))
            return
        self._num_answered += 1
        if not pending.future.done():
            pending.future.set_result(
                Scores(
                    scores=pending.scores,
                    queue_ns=int((entry.first_sent_s - entry.arrived_s) * 1e9),
                    encode_ns=pending.encode_ns,
                    compute_ns=pending.compute_ns,
                )
            )

    def _fail(self, entry: Entry, error: FastDLRMError) -> None:
        """Answer a query by an error, unless it is answered."""
        pending = self._pending.get(entry.id)
        if pending is None:
            return
        self._batcher.end(entry)
        if not pending.future.done():
            self._num_failed += 1
            pending.future.set_exception(error)
        self._release(entry)

    def _release(self, entry: Entry) -> None:
        """Free a query's memory once nobody needs it."""
        if entry.is_free and (pending := self._pending.pop(entry.id, None)) is not None:
            self._arena.free(pending.block)
            self._note_drained()

    def _note_drained(self) -> None:
        if self._refuses and not self._pending:
            self._drained.set()

    def _on_tick(self) -> None:
        self._tick = None
        now = monotonic()
        for entry in self._batcher.expired(now):
            self._fail(entry, self._too_late(entry, now))
        for worker in self._batcher.hung(now):
            timeout_s = self.options.hang_timeout_s
            self._pool.kill(worker, f"a batch took more than {timeout_s:g} s")
        self._pump(now)
        if self._pending:
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._on_tick)

    def _set_wake(self, now: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        wake_s = self._batcher.wake_s()
        if wake_s != float("inf"):
            loop = asyncio.get_running_loop()
            self._wake = loop.call_later(max(wake_s - now, 0.0), self._on_wake)

    def _on_wake(self) -> None:
        self._pump(monotonic())

    def _too_late(self, entry: Entry, now: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{entry.num_rows} rows could not be scored in time: "
            f"{(now - entry.arrived_s) * 1e3:.1f} ms after they came, "
            f"{max(entry.deadline_s - now, 0.0) * 1e3:.1f} ms are left; give more time, or ask "
            "less often"
        )

    def _out_of_work(self, problem: FastDLRMError) -> ServeError:
        return ServeError(
            f"model {self.name!r} version {self.version}: no worker runs, and none could be "
            f"started: {problem}"
        )


def request_error_of(problem: Problem, worker: int) -> FastDLRMError:
    """Why a part has no scores: the request's fault, or the server's."""
    if problem.kind == "RequestError":
        return RequestError(problem.text)
    return ServeError(f"worker {worker}: {error_of(problem)}")
