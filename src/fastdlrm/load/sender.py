"""A process that sends: takes orders from a pipe, keeps to the schedule, notes times.

One event loop, no garbage collection during a run, requests ready in mapped memory: what it does
for a query is one write and one read.
"""

import asyncio
import gc
import mmap
import time
from collections.abc import Coroutine
from math import nan
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.load.client import Address, Client
from fastdlrm.load.samples import UNFINISHED, Samples
from fastdlrm.load.timer import Timer, take_precedence

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None

FIRST_CONNECTIONS = 32
READY = "ready"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What one process does in one run."""

    address: Address
    requests: str
    """File of ready-made requests, one after the other."""
    times_s: NDArray[np.float64]
    """When each query is to be sent, from the start; empty in a closed loop."""
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Where in the file each query's request begins; in a closed loop, a ring of them."""
    stops: NDArray[np.int64]
    closed: int
    """Queries in flight; 0 = open loop."""
    stop_s: float
    """When the last query may be sent."""
    drain_s: float
    max_connections: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What it did."""

    samples: Samples
    most_connections: int
    num_waited: int
    cpu_share: float
    priority: str


def serve_orders(pipe: Connection) -> None:
    """Body of the process: carry out orders until the pipe closes.

    An order is answered by `READY`, then waits for its start (of `perf_counter`), then by a
    `Report`; or by an exception at any point.
    """
    priority = take_precedence()
    while True:
        try:
            order = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(_run(_carry_out(order, pipe, priority)))
        except (EOFError, KeyboardInterrupt, BrokenPipeError):
            return
        except Exception as problem:  # noqa: BLE001 - it is raised again where the order came from
            pipe.send(problem)


def _run(work: Coroutine[Any, Any, Report]) -> Report:
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        return runner.run(work)


async def _carry_out(order: Order, pipe: Connection, priority: str) -> Report:
    with Path(order.requests).open("rb") as file:  # unmapped when the last connection lets it go
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    places = zip(order.starts.tolist(), order.stops.tolist(), strict=True)
    sender = _Sender(order, [whole[start:stop] for start, stop in places])
    return await sender.run(pipe, priority)


class _Sender:
    """One run: the recorder of its client."""

    def __init__(self, order: Order, requests: list[memoryview]) -> None:
        self._order = order
        self._requests = requests
        self._times: list[float] = []
        self._scheduled: list[float] = []
        self._sent: list[float] = []
        self._done: list[float] = []
        self._status: list[int] = []
        self._next = 0
        self._in_flight = 0
        self._stop_at = 0.0
        self._finished = asyncio.Event()
        self._problem: BaseException | None = None
        self._client = Client(order.address, self, order.max_connections)

    async def run(self, pipe: Connection, priority: str) -> Report:
        order = self._order
        asyncio.get_running_loop().set_exception_handler(self._broke)
        first = order.closed or FIRST_CONNECTIONS
        await self._client.open(first)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            pipe.send(READY)
            start = float(await asyncio.get_running_loop().run_in_executor(None, pipe.recv))
            used, began = time.process_time(), time.perf_counter()
            self._stop_at = start + order.stop_s
            await (self._closed(start) if order.closed else self._open(start))
            share = (time.process_time() - used) / (time.perf_counter() - began)
        finally:
            gc.enable()
            gc.unfreeze()
            self._client.close()
        await asyncio.sleep(0)
        if self._problem is not None:
            raise self._problem
        return Report(
            samples=self._samples(start),
            most_connections=self._client.most_open,
            num_waited=self._client.num_waited,
            cpu_share=share,
            priority=priority,
        )

    def _broke(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback failed: no figure of this run can be trusted."""
        if self._problem is None:
            self._problem = context.get("exception") or RuntimeError(context["message"])
            self._finished.set()

    def sent(self, query: int, at: float) -> None:
        self._sent[query] = at

    def done(self, query: int, status: int, at: float) -> None:
        if self._finished.is_set():
            return
        self._done[query] = at
        self._status[query] = status
        self._in_flight -= 1
        if self._order.closed and at < self._stop_at:
            self._send_another(at)
        elif not self._in_flight and self._next >= len(self._times):
            self._finished.set()

    async def _open(self, start: float) -> None:
        self._times = (self._order.times_s + start).tolist()
        self._scheduled = self._times
        count = len(self._times)
        self._sent, self._done = [nan] * count, [nan] * count
        self._status = [UNFINISHED] * count
        if not count:
            return
        self._timer = Timer(asyncio.get_running_loop(), self._send_due)
        try:
            self._timer.at(self._times[0])
            await self._wait(self._times[-1])
        finally:
            self._timer.close()

    def _send_due(self) -> None:
        """Send all queries whose time has come."""
        times, count = self._times, len(self._times)
        now = time.perf_counter()
        while self._next < count and times[self._next] <= now:
            query = self._next
            self._next += 1
            self._in_flight += 1
            self._client.send(query, self._requests[query])
            now = time.perf_counter()
        if self._next < count:
            self._timer.at(times[self._next])

    async def _closed(self, start: float) -> None:
        await asyncio.sleep(start - time.perf_counter())
        now = time.perf_counter()
        for _ in range(self._order.closed):
            self._send_another(now)
        await self._wait(self._stop_at)

    def _send_another(self, now: float) -> None:
        """Send the next query of a closed loop."""
        query = len(self._scheduled)
        self._scheduled.append(now)
        self._sent.append(nan)
        self._done.append(nan)
        self._status.append(UNFINISHED)
        self._in_flight += 1
        self._client.send(query, self._requests[query % len(self._requests)])

    async def _wait(self, last: float) -> None:
        """Until all is answered, but no longer than `drain_s` after the last arrival."""
        left = last + self._order.drain_s - time.perf_counter()
        try:
            await asyncio.wait_for(self._finished.wait(), left)
        except TimeoutError:
            self._finished.set()

    def _samples(self, start: float) -> Samples:
        count = len(self._scheduled)
        order = self._order
        places: Any = np.arange(count) % max(len(order.sizes), 1)
        return Samples(
            np.array(self._scheduled) - start if order.closed else order.times_s,
            np.array(self._sent) - start,
            np.array(self._done) - start,
            np.array(self._status, np.int16),
            order.sizes[places],
        )
