"""DeepRecSys' way to find a server's rate, with its flaws: to reproduce what it reports, no more.

A generator draws gaps of whole milliseconds, sends, and sleeps; a query counts from when it was
sent; a bounded queue holds the generator up. After every 64 answers a controller takes the 95th
percentile of these and makes the gaps one step longer or shorter. `fastdlrm.load.search` does none
of it.

Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772, and its repository.
"""

import asyncio
import mmap
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from fastdlrm.contracts.latency_bounded import Update
from fastdlrm.errors import ConfigError, LoadError
from fastdlrm.load.client import Client
from fastdlrm.load.plan import CLOSED_SIZES, Plan
from fastdlrm.load.requests import RequestFile, RequestMaker
from fastdlrm.load.rows import read_rows
from fastdlrm.load.samples import OK
from fastdlrm.load.sizes import mean_size, query_sizes
from fastdlrm.load.target import address_of, read_metadata
from fastdlrm.stats import percentile

SHORTEST_MS, LONGEST_MS, NUM_GAPS = 1.0, 20.0, 50
"""Mean gaps between queries, evenly on a logarithmic scale."""
DEAD_BAND = 1.1
"""Gaps become shorter only where the percentile is below the SLA by this factor."""
PERCENTILE = 95.0
NO_ANSWER_S = 30.0


class ReferenceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the controller works; the defaults are the repository's."""

    window: int = 64
    """Answers that an update looks at."""
    num_updates: int = 128
    num_kept: int = 50
    """Of the last updates, whose median gap is the result."""
    queue: int = 1024
    """Queries without an answer at which the generator stands still."""


class ReferenceResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the reference's way finds."""

    plan: Plan
    qps: float
    """Of the median gap: what it reports."""
    samples_per_s: float
    """Times the mean size of a query."""
    sent_qps: float
    """Over the updates that were kept, by the clock: sleeps drift, and a full queue holds up."""
    held_up_s: float
    """How long the generator stood still before a full queue, in all."""
    options: ReferenceOptions
    updates: tuple[Update, ...]


class Controller:
    """Chooses gaps.

    Args:
        sla_ms: What the percentile should be below.
        options: How.

    Attributes:
        updates: So far.
    """

    def __init__(self, sla_ms: float, options: ReferenceOptions) -> None:
        self._sla_ms = sla_ms
        self._options = options
        self._gaps_ms = np.geomspace(SHORTEST_MS, LONGEST_MS, NUM_GAPS).tolist()
        self._place = NUM_GAPS - 1  # a server without load, so that it begins within the SLA
        self._window: list[float] = []
        self.updates: list[Update] = []

    @property
    def gap_ms(self) -> float:
        """Mean gap now."""
        return float(self._gaps_ms[self._place])

    @property
    def is_done(self) -> bool:
        """Whether it has made its last update."""
        return len(self.updates) >= self._options.num_updates

    @property
    def found_ms(self) -> float:
        """Median of the last gaps."""
        return median(update.gap_ms for update in self.updates[-self._options.num_kept :])

    def answered(self, latency_ms: float) -> None:
        """A query has its answer; infinity where it has none."""
        self._window.append(latency_ms)
        if len(self._window) < self._options.window or self.is_done:
            return
        found = percentile(np.array(self._window), PERCENTILE)
        self._window.clear()
        finite = found if found < inf else None
        self.updates.append(Update(gap_ms=self.gap_ms, percentile_ms=finite))
        if found > self._sla_ms:
            self._place = min(self._place + 1, NUM_GAPS - 1)
        elif found < self._sla_ms / DEAD_BAND:
            self._place = max(self._place - 1, 0)


def reference_search(
    plan: Plan,
    options: ReferenceOptions | None = None,
    told: Callable[[Update], None] | None = None,
) -> ReferenceResult:
    """Find a rate by the reference's way.

    Args:
        plan: Server, sizes, rows, SLA and seed; its arrivals are "reference_poisson_ms".
        options: Other than the repository's.
        told: Called after each update.

    Raises:
        ConfigError: The plan has no SLA, other arrivals, or another percentile than the 95th.
        LoadError: No server, it refuses the requests, or nothing was answered for half a minute.
    """
    is_references = plan.arrivals == "reference_poisson_ms" and plan.percentile == PERCENTILE
    if plan.sla_ms is None or not is_references:
        raise ConfigError(
            f"reference mode with sla_ms {plan.sla_ms}, arrivals {plan.arrivals!r}, percentile "
            f"{plan.percentile:g}: it takes an SLA, reference_poisson_ms and 95"
        )
    options = options or ReferenceOptions()
    metadata = read_metadata(plan)
    maker = RequestMaker(plan, read_rows(plan, metadata), metadata)
    sizes = query_sizes(plan.sizes, CLOSED_SIZES, plan.seed)
    for size in {int(sizes.min()), int(sizes.max())}:
        maker.check(size)
    with RequestFile(maker) as file:
        starts, stops = file.places(sizes, plan.seed)
        with Path(file.path).open("rb") as stream:
            whole = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        requests = [whole[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        return asyncio.run(_Generator(plan, options, requests, told).run())


class _Generator:
    """Sends and sleeps: the recorder of its client."""

    def __init__(
        self,
        plan: Plan,
        options: ReferenceOptions,
        requests: list[memoryview],
        told: Callable[[Update], None] | None,
    ) -> None:
        assert plan.sla_ms is not None
        self._plan, self._options, self._requests, self._told = plan, options, requests, told
        self._controller = Controller(plan.sla_ms, options)
        self._random = np.random.default_rng(plan.seed)
        self._sent: list[float] = []
        self._num_done = 0
        self._has_room = asyncio.Event()
        self._held_up_s = 0.0
        self._kept: tuple[int, float] | None = None

    async def run(self) -> ReferenceResult:
        address = address_of(self._plan.url)
        client = Client(address, self, self._options.queue)
        try:
            await client.open(1)
            while not self._controller.is_done:
                await self._wait_for_room()
                self._sent.append(time.perf_counter())
                client.send(len(self._sent) - 1, self._requests[len(self._sent) % CLOSED_SIZES])
                await asyncio.sleep(self._random.poisson(self._controller.gap_ms) / 1000)
        finally:
            client.close()
            await asyncio.sleep(0)  # connections close in the loop's next turn
        return self._result()

    def sent(self, query: int, at: float) -> None:
        """As `fastdlrm.load.client.Recorder`; a query counts from when it is handed over."""

    def done(self, query: int, status: int, at: float) -> None:
        """As `fastdlrm.load.client.Recorder`."""
        controller, before = self._controller, len(self._controller.updates)
        self._num_done += 1
        self._has_room.set()
        controller.answered((at - self._sent[query]) * 1e3 if status == OK else inf)
        updates = controller.updates
        if len(updates) > before:
            if len(updates) == max(self._options.num_updates - self._options.num_kept, 1):
                self._kept = len(self._sent), time.perf_counter()
            if self._told is not None:
                self._told(updates[-1])

    async def _wait_for_room(self) -> None:
        """Stand still while the queue is full, as a blocking put does."""
        if len(self._sent) - self._num_done < self._options.queue:
            return
        began = time.perf_counter()
        while len(self._sent) - self._num_done >= self._options.queue:
            self._has_room.clear()
            try:
                await asyncio.wait_for(self._has_room.wait(), NO_ANSWER_S)
            except TimeoutError:
                raise LoadError(
                    f"{self._plan.url}: {self._options.queue} queries sent, none answered for "
                    f"{NO_ANSWER_S:g} s; does the server still run?"
                ) from None
        self._held_up_s += time.perf_counter() - began

    def _result(self) -> ReferenceResult:
        assert self._kept is not None
        count, since = self._kept
        qps = 1000 / self._controller.found_ms
        plan = self._plan
        return ReferenceResult(
            plan=plan,
            qps=qps,
            samples_per_s=qps * mean_size(plan.sizes, plan.seed),
            sent_qps=(len(self._sent) - count) / (time.perf_counter() - since),
            held_up_s=self._held_up_s,
            options=self._options,
            updates=tuple(self._controller.updates),
        )
