"""Steps of a resumable job: tasks that do not depend on one another, each done once.

A task that a valid record speaks for is not done again. Steps ask for the files of earlier ones
only if they have something to do, so that files which are no longer needed may be gone.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from fastdlrm.contracts.manifest import FileEntry
from fastdlrm.data.journal import Journal, Record
from fastdlrm.data.workers import Report, Workers

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
Progress = Callable[[str, int, int], None]
"""Told of a step, the bytes it has worked through, and all of its bytes."""


class Outcome(NamedTuple):
    """What a task hands back.

    Attributes:
        result: Of the step's result type.
        files: What it wrote, by path relative to the work folder.
    """

    result: Any
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[ResultT]):
    """Tasks 0, 1, .. of one kind.

    Attributes:
        name: In the journal and of the progress.
        result: Type of a task's result; JSON must hold it.
        keys: Of each task, the digest of all that its outcome depends on.
        sizes: Bytes that each works through, for the progress.
        function: Does a task; can be pickled.
        num_per_process: Most tasks of a process at once.
        needs: Called before any task is done: sees to the files that they read.
    """

    name: str
    result: type[ResultT]
    keys: Sequence[str]
    sizes: Sequence[int]
    function: Callable[[int, Report], Outcome]
    num_per_process: int
    needs: Callable[[], object] = lambda: None

    def task(self, number: int) -> str:
        """Name of a task in the journal."""
        return f"{self.name}/{number:05d}"


@dataclass(frozen=True, slots=True)
class Done(Generic[ResultT]):
    """A finished task.

    Attributes:
        result: What it found.
        files: What it wrote.
    """

    result: ResultT
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs steps.

    Attributes:
        journal: Of the job.
        workers: Do the tasks.
        progress: Told of every step.
    """

    journal: Journal
    workers: Workers
    progress: Progress
    _checked: set[str] = field(default_factory=set)

    def run(self, step: Step[ResultT], *, with_files: bool = True) -> list[Done[ResultT]]:
        """All tasks of a step, doing those that are not done.

        Args:
            step: The step.
            with_files: Whether the tasks' files must be there and whole; else the results do.
        """
        records = self._found(step, with_files)
        left = [number for number in range(len(step.keys)) if number not in records]
        if left:
            step.needs()
            self._do(step, left, records)
        ordered = [records[number] for number in range(len(step.keys))]
        return [Done(msgspec.json.decode(r.result, type=step.result), r.files) for r in ordered]

    def _do(self, step: Step[Any], left: Sequence[int], records: dict[int, Record]) -> None:
        """Do the tasks that are left and add their records."""
        if records:
            logger.warning(
                "%s: %d of %d tasks were done before", step.name, len(records), len(step.keys)
            )
        meter = _Meter(step.sizes, lambda done, total: self.progress(step.name, done, total))
        for number in records:
            meter.finish(number)
        function = _Recorded(step.function, self.journal, step.name, tuple(step.keys))
        with closing(self.workers.run(function, left, meter.add, step.num_per_process)) as work:
            for number, record in work:
                records[number] = record
                self._checked.add(record.task)
                meter.finish(number)

    def _found(self, step: Step[Any], with_files: bool) -> dict[int, Record]:
        """Records that hold, by task."""
        found = {}
        for number, key in enumerate(step.keys):
            record = self.journal.find(step.task(number))
            if record and record.key == key:
                found[number] = record
            elif record:
                logger.warning(
                    "%s: its input, config or version has changed; it is done again", record.task
                )
        if not with_files:
            return found
        unchecked = [n for n, record in found.items() if record.task not in self._checked]
        for number, damaged in self._check([found[n] for n in unchecked], unchecked):
            if damaged:
                logger.warning(
                    "%s: %s is missing or damaged; it is done again", step.task(number), damaged
                )
                del found[number]
            else:
                self._checked.add(step.task(number))
        return found

    def _check(
        self, records: Sequence[Record], numbers: Sequence[int]
    ) -> Iterator[tuple[int, str]]:
        with ThreadPoolExecutor(self.workers.num_per_process) as pool:
            yield from zip(numbers, pool.map(self.journal.damaged_file, records), strict=True)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A task's function that leaves a record, where the task runs: none is lost to a kill."""

    function: Callable[[int, Report], Outcome]
    journal: Journal
    step: str
    keys: tuple[str, ...]

    def __call__(self, number: int, report: Report) -> tuple[int, Record]:
        result, files = self.function(number, report)
        record = Record(
            task=f"{self.step}/{number:05d}",
            key=self.keys[number],
            files=files,
            result=msgspec.Raw(msgspec.json.encode(result)),
        )
        self.journal.write(record)
        return number, record


class _Meter:
    """Bytes done of a step; a finished task counts in full, whatever it reported."""

    def __init__(self, sizes: Sequence[int], tell: Callable[[int, int], None]) -> None:
        self._sizes, self._tell = sizes, tell
        self._total = sum(sizes)
        self._reported = [0] * len(sizes)
        self._done = 0
        self._lock = threading.Lock()
        tell(0, self._total)

    def add(self, number: int, num_bytes: int) -> None:
        with self._lock:
            num_bytes = min(num_bytes, self._sizes[number] - self._reported[number])
            self._reported[number] += num_bytes
            self._done += num_bytes
            self._tell(self._done, self._total)

    def finish(self, number: int) -> None:
        self.add(number, self._sizes[number])
