"""Who runs the tasks of a step: threads of this process here, a Ray cluster in `cluster`.

A task is a number; a function does it. Threads do as well as processes, for the compiled code and
the libraries that do the work let go of the interpreter, and they share the vocabularies.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fastdlrm.errors import ConfigError

ResultT = TypeVar("ResultT")

Report = Callable[[int], None]
"""Called by a task with the bytes it has worked through since it last called."""
TaskFunction = Callable[[int, Report], ResultT]

LIBRARY_BYTES = 320 << 20
"""Resident size of the interpreter and the libraries, about."""
LEAST_PROCESS_BYTES = 768 << 20
"""Below this a part cannot be permuted beside the libraries."""


class Workers(Protocol):
    """Runs tasks.

    Attributes:
        num_processes: Processes that the memory is shared out to.
        num_per_process: Tasks that one of them runs at once.
    """

    num_processes: int
    num_per_process: int

    def run(
        self,
        function: TaskFunction[ResultT],
        numbers: Sequence[int],
        report: Callable[[int, int], None],
        num_per_process: int,
    ) -> Generator[ResultT, None, None]:
        """Results as they come; the first error ends the work.

        Args:
            function: Can be pickled.
            numbers: Of the tasks.
            report: Called from any thread with a task's number and bytes.
            num_per_process: Most tasks of a process at once.
        """
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory of one process.

    Attributes:
        spare_bytes: Beyond the libraries'.
        num_per_process: Tasks that share it.
    """

    spare_bytes: int
    num_per_process: int

    @classmethod
    def of(cls, memory_bytes: int, workers: Workers) -> "Budget":
        """Share out the memory.

        Raises:
            ConfigError: It is too little.
        """
        process_bytes = memory_bytes // workers.num_processes
        if process_bytes < LEAST_PROCESS_BYTES:
            least = LEAST_PROCESS_BYTES * workers.num_processes >> 20
            raise ConfigError(
                f"--memory: {memory_bytes >> 20} MiB; {least} MiB is the least for "
                f"{workers.num_processes} process" + "es" * (workers.num_processes > 1)
            )
        return cls(process_bytes - LIBRARY_BYTES, workers.num_per_process)

    def split(self, least_bytes: int) -> tuple[int, int]:
        """Tasks at once that need so much each, and the bytes that each then has."""
        number = max(1, min(self.num_per_process, self.spare_bytes // least_bytes))
        return number, self.spare_bytes // number


class _Stopped(Exception):
    """Thrown into tasks whose results nobody waits for any more."""


class Threads:
    """Threads of this process.

    Args:
        num_workers: How many.
    """

    num_processes = 1

    def __init__(self, num_workers: int) -> None:
        self.num_per_process = num_workers

    def run(
        self,
        function: TaskFunction[ResultT],
        numbers: Sequence[int],
        report: Callable[[int, int], None],
        num_per_process: int,
    ) -> Generator[ResultT, None, None]:
        """As `Workers.run`; an error, or closing the iterator, stops tasks where they report."""
        is_stopped = threading.Event()

        def run(number: int) -> ResultT:
            def tell(num_bytes: int) -> None:
                if is_stopped.is_set():
                    raise _Stopped
                report(number, num_bytes)

            return function(number, tell)

        pool = ThreadPoolExecutor(num_per_process, thread_name_prefix="fastdlrm-worker")
        try:
            for future in as_completed([pool.submit(run, number) for number in numbers]):
                yield future.result()
        finally:
            is_stopped.set()
            pool.shutdown(cancel_futures=True)
