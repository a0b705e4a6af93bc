"""A batcher driven on a clock of its own: queries come by a plan, workers take a planted time."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from fastdlrm.errors import RequestError
from fastdlrm.serve.batcher import Batch, Batcher
from fastdlrm.serve.waiting import Entry

TICK_S = 0.02


class Arrival(NamedTuple):
    """A query that comes."""

    at_s: float
    num_rows: int
    within_s: float
    priority: int = 0


class Outcome(NamedTuple):
    """How a query ended: answered, refused or late."""

    arrival: Arrival
    how: str
    at_s: float


class Simulation:
    """Runs until all is answered.

    Attributes:
        outcomes: How each query ended, in order of the ends.
        batches: What was sent.
        most_rows: Most samples that waited at a time.
    """

    def __init__(
        self, batcher: Batcher, num_workers: int, service_s: Callable[[int], float]
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.batches: list[Batch] = []
        self.most_rows = 0
        self._batcher = batcher
        self._service_s = service_s
        self._arrivals: dict[int, Arrival] = {}
        self._events: list[tuple[float, int, str, int]] = []
        self._count = 0
        self._sent: list[deque[Batch]] = [deque() for _ in range(num_workers)]
        for worker in range(num_workers):
            batcher.open(worker)

    def run(self, arrivals: Iterable[Arrival]) -> None:
        plan = list(arrivals)
        for index, arrival in enumerate(plan):
            self._at(arrival.at_s, "arrival", index)
        last_tick_s = 0.0
        while self._events:
            now, _, what, index = heapq.heappop(self._events)
            if what == "arrival":
                self._arrive(plan[index], now)
            elif what == "done":
                self._finish(index, now)
            for entry in self._batcher.expired(now) if now >= last_tick_s + TICK_S else ():
                self._end(entry, "late", now)
            last_tick_s = now if now >= last_tick_s + TICK_S else last_tick_s
            self._pump(now)
            self.most_rows = max(self.most_rows, self._batcher.queue_rows)

    def _at(self, time_s: float, what: str, index: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, what, index))

    def _arrive(self, arrival: Arrival, now: float) -> None:
        deadline_s = now + arrival.within_s
        try:
            entry = self._batcher.add(arrival.num_rows, deadline_s, arrival.priority, now)
        except RequestError:
            self.outcomes.append(Outcome(arrival, "refused", now))
        else:
            self._arrivals[entry.id] = arrival

    def _finish(self, worker: int, now: float) -> None:
        busy_s = self._service_s(self._sent[worker].popleft().num_rows)
        batch = self._batcher.finished(worker, now, busy_s)
        if self._sent[worker]:  # the one that was sent ahead begins now
            self._at(now + self._service_s(self._sent[worker][0].num_rows), "done", worker)
        for part in batch.parts:
            if not part.entry.is_ended and not part.entry.parts_left:
                self._batcher.complete(part.entry, now)
                self._end(part.entry, "answered", now)

    def _pump(self, now: float) -> None:
        while (batch := self._batcher.take(now)) is not None:
            self.batches.append(batch)
            self._sent[batch.worker].append(batch)
            if len(self._sent[batch.worker]) == 1:
                self._at(now + self._service_s(batch.num_rows), "done", batch.worker)
        dropped, self._batcher.dropped = self._batcher.dropped, []
        for entry in dropped:
            self._end(entry, "late", now)
        wake_s = self._batcher.wake_s()
        if self._batcher.limits.max_queue_delay_s and wake_s != inf:
            self._at(max(wake_s, now), "wake", 0)

    def _end(self, entry: Entry, how: str, now: float) -> None:
        self._batcher.end(entry)
        self.outcomes.append(Outcome(self._arrivals.pop(entry.id), how, now))
