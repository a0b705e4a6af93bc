"""The process in which MLPerf's LoadGen runs: it issues queries, a client sends them over HTTP.

A process of its own for each run: LoadGen's library keeps settings between runs in one process.
LoadGen calls from threads of its own; the connections live in an event loop beside it.
"""

import asyncio
import mmap
import threading
import time
from math import nan
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.load.client import Address, Client
from fastdlrm.load.samples import OK, UNFINISHED, Samples
from fastdlrm.load.timer import take_precedence

SAMPLES_FILE = "samples.arrow"
NUM_WARMUP = 100
"""Queries sent one after the other before LoadGen starts."""
FIRST_CONNECTIONS = 64


class LoadgenOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A run of LoadGen."""

    address: Address
    requests: str
    """File of ready-made requests."""
    sizes: NDArray[np.int64]
    """Of each sample of LoadGen's library: the rows of the query that stands for it."""
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    scenario: str
    """"Server" or "Offline"."""
    folder: str
    """For LoadGen's logs, and the times of all queries."""
    settings: dict[str, Any]
    """Fields of `TestSettings`."""
    max_connections: int


class Counts(NamedTuple):
    """Queries of a run."""

    num_queries: int
    num_failed: int
    """Without scores."""


def run_order(pipe: Connection) -> None:
    """Body of the process: one order, answered by `Counts` or an exception."""
    take_precedence()
    try:
        pipe.send(_Harness(pipe.recv()).run())
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as problem:  # noqa: BLE001 - it is raised again where the order came from
        pipe.send(problem)


class _Harness:
    """Between LoadGen and the connections: the recorder of its client."""

    def __init__(self, order: LoadgenOrder) -> None:
        self._order = order
        with Path(order.requests).open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        places = zip(order.starts.tolist(), order.stops.tolist(), strict=True)
        self._requests = [whole[start:stop] for start, stop in places]
        self._loop = asyncio.new_event_loop()
        self._client = Client(order.address, self, order.max_connections)
        self._ids: list[int] = []  # of LoadGen, by query
        self._samples: list[int] = []
        self._issued: list[float] = []
        self._sent: list[float] = []
        self._done: list[float] = []
        self._status: list[int] = []
        self._is_warm = asyncio.Event()
        self._num_warm = 0

    def run(self) -> Counts:
        import mlperf_loadgen as lg

        self._lg = lg
        settings = lg.TestSettings()
        settings.scenario = getattr(lg.TestScenario, self._order.scenario)
        settings.mode = lg.TestMode.PerformanceOnly
        for name, value in self._order.settings.items():
            setattr(settings, name, value)
        logs = lg.LogSettings()
        logs.log_output.outdir = self._order.folder
        logs.log_output.copy_summary_to_stdout = False
        logs.enable_trace = False
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(self._warm(), self._loop).result()
        count = len(self._requests)
        library = lg.ConstructQSL(count, count, lambda samples: None, lambda samples: None)
        system = lg.ConstructQDL(self._issue, lambda: None, lambda: "fastdlrm load")
        try:
            lg.StartTestWithLogSettings(system, library, settings, logs)
        finally:
            lg.DestroyQDL(system)
            lg.DestroyQSL(library)
        self._loop.call_soon_threadsafe(self._client.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        self._write()
        return Counts(len(self._status), sum(status != OK for status in self._status))

    def sent(self, query: int, at: float) -> None:
        if query >= 0:
            self._sent[query] = at

    def done(self, query: int, status: int, at: float) -> None:
        if query < 0:
            self._num_warm += 1
            if self._num_warm < NUM_WARMUP:
                self._client.send(-1, self._requests[self._num_warm % len(self._requests)])
            else:
                self._is_warm.set()
            return
        self._done[query] = at
        self._status[query] = status
        self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(self._ids[query], 0, 0)])

    async def _warm(self) -> None:
        await self._client.open(FIRST_CONNECTIONS)
        self._client.send(-1, self._requests[0])
        await self._is_warm.wait()

    def _issue(self, samples: list[Any]) -> None:
        """Called by LoadGen when samples are due."""
        now = time.perf_counter()
        issued = [(sample.id, sample.index, now) for sample in samples]
        self._loop.call_soon_threadsafe(self._send, issued)

    def _send(self, issued: list[tuple[int, int, float]]) -> None:
        for number, sample, now in issued:
            query = len(self._ids)
            self._ids.append(number)
            self._samples.append(sample)
            self._issued.append(now)
            self._sent.append(nan)
            self._done.append(nan)
            self._status.append(UNFINISHED)
            self._client.send(query, self._requests[sample])

    def _write(self) -> None:
        start = self._issued[0]
        Samples(
            np.array(self._issued) - start,
            np.array(self._sent) - start,
            np.array(self._done) - start,
            np.array(self._status, np.int16),
            self._order.sizes[np.array(self._samples)],
        ).write(Path(self._order.folder) / SAMPLES_FILE)
