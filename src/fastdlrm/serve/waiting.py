"""Parts of queries that wait, first in first out within a priority.

Invariants: `num_rows` and `num_parts` count live parts alone; a part of a query that ended is never
handed out; what is kept of ended queries is at most as much as what lives, and a bit.
"""

from collections import deque

NUM_LEVELS = 17
"""Priorities 1 to 16, then the default; a larger one counts as 16."""
DEFAULT_LEVEL = NUM_LEVELS - 1
MAX_DEAD = 64


def level_of(priority: int) -> int:
    """Where a request's priority queues: 0 is first; 1 is the highest priority, 0 the default."""
    return DEFAULT_LEVEL if priority == 0 else min(priority, DEFAULT_LEVEL) - 1


class Entry:
    """A query: rows and times, no data.

    Attributes:
        id: Unique in its batcher.
        num_rows: Its samples.
        deadline_s: By when its scores are of use.
        level: See `level_of`.
        arrived_s: When it came.
        promised_s: When its scores were predicted to be there.
        first_sent_s: When the first worker got a part of it; 0 before.
        rows_waiting: Of its parts that wait.
        parts_waiting: How many wait.
        parts_running: How many a worker has.
        parts_left: How many have no scores yet.
        is_ended: Whether it has its answer.
    """

    __slots__ = (
        "arrived_s",
        "deadline_s",
        "first_sent_s",
        "id",
        "is_ended",
        "level",
        "num_rows",
        "parts_left",
        "parts_running",
        "parts_waiting",
        "promised_s",
        "rows_waiting",
    )

    def __init__(
        self,
        number: int,
        num_rows: int,
        deadline_s: float,
        *,
        level: int,
        arrived_s: float,
        promised_s: float,
    ) -> None:
        self.id = number
        self.num_rows = num_rows
        self.deadline_s = deadline_s
        self.level = level
        self.arrived_s = arrived_s
        self.promised_s = promised_s
        self.first_sent_s = 0.0
        self.rows_waiting = self.parts_waiting = self.parts_running = self.parts_left = 0
        self.is_ended = False

    @property
    def is_free(self) -> bool:
        """Whether no worker can read its inputs any more."""
        return self.is_ended and not self.parts_running


class Part:
    """Rows `start` to `stop` of a query.

    Attributes:
        entry: The query.
        start: First row.
        stop: Behind the last row.
        is_retried: Whether a worker died of the batch it was in; it goes alone from then on.
    """

    __slots__ = ("entry", "is_retried", "start", "stop")

    def __init__(self, entry: Entry, start: int, stop: int) -> None:
        self.entry = entry
        self.start = start
        self.stop = stop
        self.is_retried = False

    @property
    def num_rows(self) -> int:
        """Its samples."""
        return self.stop - self.start


class Waiting:
    """The queue.

    Attributes:
        num_rows: Samples that wait.
        num_parts: Parts that wait.
    """

    def __init__(self) -> None:
        self.num_rows = self.num_parts = 0
        self._levels: list[deque[Part]] = [deque() for _ in range(NUM_LEVELS)]
        self._rows = [0] * NUM_LEVELS
        self._parts = [0] * NUM_LEVELS
        self._num_dead = 0

    def push(self, part: Part, *, is_first: bool = False) -> None:
        """Queue a part behind all of its level, or before them."""
        entry = part.entry
        queue = self._levels[entry.level]
        if is_first:
            queue.appendleft(part)
        else:
            queue.append(part)
        self._count(entry, part.num_rows, 1)

    def head(self) -> Part | None:
        """The part that is next."""
        if not self.num_parts:
            return None
        for queue in self._levels:
            while queue:
                if not queue[0].entry.is_ended:
                    return queue[0]
                queue.popleft()
                self._num_dead -= 1
        return None

    def pop(self) -> Part | None:
        """Take the part that is next."""
        part = self.head()
        if part is not None:
            self._levels[part.entry.level].popleft()
            self._count(part.entry, -part.num_rows, -1)
        return part

    def forget(self, entry: Entry) -> None:
        """Drop the parts of a query that ended."""
        self._num_dead += entry.parts_waiting
        self._count(entry, -entry.rows_waiting, -entry.parts_waiting)
        if self._num_dead > self.num_parts + MAX_DEAD:
            self._levels = [deque(p for p in q if not p.entry.is_ended) for q in self._levels]
            self._num_dead = 0

    def ahead_of(self, level: int) -> tuple[int, int]:
        """Rows and parts that a new query of this level waits for."""
        if level == DEFAULT_LEVEL:
            return self.num_rows, self.num_parts
        return sum(self._rows[: level + 1]), sum(self._parts[: level + 1])

    def oldest_s(self) -> float:
        """When the query came that has waited longest; infinity where none waits."""
        self.head()
        arrivals = [
            next((part.entry.arrived_s for part in queue if not part.entry.is_ended), float("inf"))
            for queue in self._levels
            if queue
        ]
        return min(arrivals, default=float("inf"))

    def _count(self, entry: Entry, rows: int, parts: int) -> None:
        entry.rows_waiting += rows
        entry.parts_waiting += parts
        self.num_rows += rows
        self.num_parts += parts
        self._rows[entry.level] += rows
        self._parts[entry.level] += parts
