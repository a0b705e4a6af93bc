"""Copies of a model, each a process with one thread on a core of its own, that run together.

Between runs all wait: those that take no part in a run cost memory and no time. Invariants: a copy
that ends, for whatever reason, ends the run with an error; no process outlives `close`, nor its
parent by more than a run.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdlrm.bench.batch import forward
from fastdlrm.bench.cores import pin
from fastdlrm.bench.measure import wait
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.shared_tables import SharedTables
from fastdlrm.bench.window import Stamps
from fastdlrm.errors import BenchError, FastDLRMError
from fastdlrm.model.predictor import Predictor
from fastdlrm.serve.workers import reason_of

LEAD_S = 0.02
"""Between the order to start and the start: time to deal it out."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one copy is.

    Attributes:
        model: Its model.
        number: Among all copies; its batches are its own.
        core: On which it runs.
        batch_size: B of each call.
        num_batches: That take turns.
        is_private: Whether it has tables of its own.
        shared: Tables that it maps, too.
        matmul: How float32 products are computed: what `BenchModel.settle_products` found.
    """

    model: BenchModel
    number: int
    core: int
    batch_size: int
    num_batches: int
    is_private: bool
    shared: SharedTables | None
    matmul: str


class Ready(NamedTuple):
    """A copy is built.

    Attributes:
        pid: Its process.
        cores: On which the system lets it run.
        num_threads: That torch computes with.
    """

    pid: int
    cores: tuple[int, ...]
    num_threads: int


class Copies:
    """Processes of some jobs.

    Args:
        jobs: One process each.

    Attributes:
        ready: What each said when it was built.

    Raises:
        BenchError: One ended.
        ConfigError: The tables of one do not fit.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        try:
            for job in jobs:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=serve, args=(job, theirs), name=f"copy-{job.number}", daemon=True
                )
                self._processes.append(process)
                self._pipes.append(ours)
                process.start()
                theirs.close()
            self.ready: list[Ready] = [self._receive(place) for place in range(len(jobs))]
        except BaseException:
            self.close()
            raise

    def run(self, places: Sequence[int], tables: str, seconds: float) -> tuple[list[Stamps], int]:
        """Have some copies compute batch after batch, all from one moment on.

        Args:
            places: Of the copies, in `jobs`.
            tables: "private" or "shared".
            seconds: How long.

        Returns:
            Stamps of each, in the order of `places`, and when the time was over.

        Raises:
            BenchError: A copy ended.
        """
        for place in places:
            self._send(place, tables)
        for place in places:
            self._receive(place)  # it has made a call: its memory is mapped, its code loaded
        start = time.perf_counter_ns() + int(LEAD_S * 1e9)
        stop = start + int(seconds * 1e9)
        for place in places:
            self._send(place, (start, stop))
        return [self._receive(place) for place in places], stop

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            if process.pid is not None:
                process.kill()
                process.join()
            process.close()
        self._processes.clear()
        self._pipes.clear()

    def __enter__(self) -> "Copies":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, place: int, message: object) -> None:
        try:
            self._pipes[place].send(message)
        except OSError:
            raise self._ended(place) from None

    def _receive(self, place: int) -> Any:
        try:
            found = self._pipes[place].recv()
        except (EOFError, OSError):
            raise self._ended(place) from None
        if isinstance(found, FastDLRMError):
            raise found
        return found

    def _ended(self, place: int) -> BenchError:
        job, process = self._jobs[place], self._processes[place]
        process.join(timeout=2)
        code = process.exitcode
        how = "it closed its pipe" if code is None else reason_of(code)
        return BenchError(
            f"copy {job.number} of {len(self._jobs)}, of {job.model.name}, on core {job.core}: "
            f"{how}; the measurement needs all: run it again, with fewer --copies or a smaller "
            "--rows-scale if memory ran out"
        )


def serve(job: Job, pipe: Connection) -> None:
    """What a copy's process does, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its copies
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has closed, or ended
        try:
            _serve(job, pipe)
        except FastDLRMError as problem:
            pipe.send(problem)
    os._exit(0)  # nothing is left to be taken away; libraries would complain on the way


def _serve(job: Job, pipe: Connection) -> None:
    """Build a copy and carry out orders."""
    pin(job.core)
    torch.set_num_threads(1)
    calls = _calls(job)
    for call in calls.values():  # maps pages, compiles kernels
        for k in range(job.num_batches):
            call(k)
    wait(job.model.device)
    gc.collect()
    gc.disable()  # from here on nothing is made that it would find
    pipe.send(Ready(os.getpid(), tuple(sorted(os.sched_getaffinity(0))), torch.get_num_threads()))
    next_input = dict.fromkeys(calls, 0)
    while True:
        tables = pipe.recv()
        call, k = calls[tables], next_input[tables]
        call(k)
        wait(job.model.device)
        pipe.send(None)
        start, stop = pipe.recv()
        stamps = closed_loop(call, job.model.device, k + 1, start, stop)
        next_input[tables] = k + len(stamps)
        pipe.send(stamps)


def closed_loop(
    call: Callable[[int], object], device: torch.device, k: int, start_ns: int, stop_ns: int
) -> Stamps:
    """Call again as soon as a call is done.

    Args:
        call: Takes k, k + 1, ...
        device: Awaited before each stamp.
        k: First input.
        start_ns: When to begin.
        stop_ns: No call begins from here on, but for the first.

    Returns:
        When it began, and when each call ended: one stamp more than calls.
    """
    time.sleep(max(0, start_ns - time.perf_counter_ns()) / 1e9)
    stamps = array("q", [time.perf_counter_ns()])
    while len(stamps) < 2 or stamps[-1] < stop_ns:
        call(k)
        wait(device)
        stamps.append(time.perf_counter_ns())
        k += 1
    return np.array(stamps, np.int64)


def _calls(job: Job) -> Mapping[str, Callable[[int], object]]:
    """The forward pass, by the tables it reads."""
    model = job.model
    model.settle_products(job.matmul)
    batches = model.batches(job.batch_size, job.num_batches, job.number)
    built = {"private": model.build()} if job.is_private else {}
    if job.shared is not None:
        built["shared"] = job.shared.build(model)
    return {
        tables: forward(Predictor(found.eval(), model.dtype), batches)
        for tables, found in built.items()
    }
