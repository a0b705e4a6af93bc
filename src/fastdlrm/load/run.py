"""Run a plan: the one door of this package.

    result = run(Plan(url="http://127.0.0.1:8000", model="m", rate=200, sla_ms=20))

A `Crew` keeps processes and requests for several runs against one server.
"""

import contextlib
import multiprocessing
import time
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fastdlrm.errors import LoadError
from fastdlrm.load.plan import Plan, Schedule, schedule_of
from fastdlrm.load.requests import RequestFile, RequestMaker
from fastdlrm.load.result import LoadResult
from fastdlrm.load.rows import read_rows
from fastdlrm.load.samples import Samples
from fastdlrm.load.sender import READY, Order, Report, serve_orders
from fastdlrm.load.summary import Generator, summarise
from fastdlrm.load.target import address_of, read_metadata

LEAD_S = 0.2
"""Between the order to start and the first query: time to deal it out."""
SETTLE_S, SETTLED_MS, PAUSE_S = 30.0, 50.0, 0.1
TARGET_FIELDS = (
    "url",
    "model",
    "version",
    "body",
    "rows",
    "user_columns",
    "top_k",
    "timeout_ms",
    "headers",
    "processes",
)
"""What a crew cannot change between its runs."""


def run(plan: Plan, *, samples: Path | None = None) -> LoadResult:
    """Run a plan against its server.

    Args:
        plan: What to do.
        samples: Arrow file to write with every query's times; None writes none.

    Raises:
        ConfigError, DataError: The plan, its trace, sizes or rows are wrong.
        LoadError: No server, it refuses the requests, or the generator broke.
    """
    with Crew(plan) as crew:
        return crew.run(plan, samples=samples)


class Crew:
    """Processes that send to one server, and the requests made for it.

    Args:
        plan: Names the server and the requests' form; runs may differ in everything but that.

    Raises:
        ConfigError, DataError, LoadError: As `run`.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        metadata = read_metadata(plan)
        self._maker = RequestMaker(plan, read_rows(plan, metadata), metadata)
        self._requests = RequestFile(self._maker)
        self._checked: set[int] = set()
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for index in range(plan.processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve_orders, args=(theirs,), name=f"load-{index}", daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def run(self, plan: Plan, *, samples: Path | None = None) -> LoadResult:
        """Run a plan; see the function `run`."""
        found, generator = self.measure(plan)
        if samples is not None:
            found.write(samples)
        return summarise(found, plan, generator)

    def measure(self, plan: Plan) -> tuple[Samples, Generator]:
        """Run a plan, and return all that was measured, warm-up included."""
        for name in TARGET_FIELDS:
            if getattr(plan, name) != getattr(self._plan, name):
                raise LoadError(
                    f"a crew for {name} {getattr(self._plan, name)!r} cannot run "
                    f"{getattr(plan, name)!r}; make another crew"
                )
        schedule = schedule_of(plan)
        self._check(schedule)
        orders = self._orders(plan, schedule)
        start_at, reports = self._carry_out(orders)
        started = datetime.now(UTC) - timedelta(seconds=time.perf_counter() - start_at)
        generator = Generator(
            num_connections=sum(report.most_connections for report in reports),
            num_waited=sum(report.num_waited for report in reports),
            cpu_share=max(report.cpu_share for report in reports),
            priority=reports[0].priority,
            num_example_rows=self._maker.num_rows,
            unused_columns=tuple(self._maker.unused),
            started=started.isoformat(timespec="seconds"),
            start_at=start_at,
        )
        return Samples.join([report.samples for report in reports]), generator

    def settle(self, plan: Plan) -> None:
        """Wait until the server has done what an earlier run left it to do.

        Until it answers a query within the SLA, that is, but no longer than `SETTLE_S`: the run
        that follows will show it.
        """
        until = time.perf_counter() + SETTLE_S
        while self._checked:
            began = time.perf_counter()
            with contextlib.suppress(LoadError):  # refused: it is busy still
                self._maker.check(min(self._checked))
                if time.perf_counter() - began <= max(plan.sla_ms or 0.0, SETTLED_MS) / 1e3:
                    return
            if time.perf_counter() > until:
                return
            time.sleep(PAUSE_S)

    def close(self) -> None:
        """End the processes and remove the requests."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes.clear()
        self._pipes.clear()
        self._requests.close()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, schedule: Schedule) -> None:
        """See that the server takes the smallest and the largest query."""
        for size in {int(schedule.sizes.min()), int(schedule.sizes.max())} - self._checked:
            self._maker.check(size)
            self._checked.add(size)

    def _orders(self, plan: Plan, schedule: Schedule) -> list[Order]:
        starts, stops = self._requests.places(schedule.sizes, plan.seed)
        count = plan.processes
        orders = []
        for index in range(count):
            part = schedule.part(index, count)
            is_open = plan.closed is None
            orders.append(
                Order(
                    address=address_of(plan.url),
                    requests=self._requests.path,
                    times_s=schedule.times_s[part] if is_open else np.empty(0),
                    sizes=schedule.sizes[part],
                    starts=starts[part],
                    stops=stops[part],
                    closed=0 if plan.closed is None else _share(plan.closed, index, count),
                    stop_s=plan.warmup_seconds + plan.duration_s,
                    drain_s=plan.drain_s,
                    max_connections=_share(plan.max_connections, index, count),
                )
            )
        return orders

    def _carry_out(self, orders: list[Order]) -> tuple[float, list[Report]]:
        """Have orders carried out; when they began, and what the processes report."""
        for pipe, order in zip(self._pipes, orders, strict=True):
            pipe.send(order)
        for index in range(len(orders)):
            self._receive(index)  # READY
        start = time.perf_counter() + LEAD_S
        for pipe in self._pipes:
            pipe.send(start)
        return start, [self._receive(index) for index in range(len(orders))]

    def _receive(self, index: int) -> Any:
        try:
            found = self._pipes[index].recv()
        except EOFError:
            self._processes[index].join(timeout=2)
            raise LoadError(
                f"generator process {index} ended (exit code {self._processes[index].exitcode}); "
                "its own message is above"
            ) from None
        if isinstance(found, OSError):
            raise LoadError(f"{self._plan.url}: no connection ({found}); is the server there?")
        if isinstance(found, Exception):
            raise found
        assert found == READY or isinstance(found, Report)
        return found


def _share(whole: int, index: int, count: int) -> int:
    """What one of `count` gets of a whole number dealt out."""
    return whole // count + (index < whole % count)
