"""Queries to batches: who waits, what goes together to which worker, who is refused, and when.

A state machine: it holds no data, no sockets and no clock. Queries of more than a batch's rows are
cut into equal parts, smaller ones are put together, first in first out within a priority.

Invariants: each query ends once (all its parts scored, or a reason); a query is refused when it
comes or was predicted to be in time; an idle engine takes any query whose deadline has not passed,
so a wrong prediction corrects itself; rows that wait are bounded.
"""

from collections import Counter, deque
from math import ceil, inf
from typing import NamedTuple

import msgspec

from fastdlrm.errors import DeadlineExceeded, Overloaded
from fastdlrm.serve.cost import CostModel, Margin
from fastdlrm.serve.waiting import Entry, Part, Waiting, level_of

HANDOVER_SHARE = 0.05
"""Of a new measurement in the mean of what a hand-over takes."""
MARGIN_SHARE = 0.5
"""Of a query's time that the margin may take: else a stall would have all short ones refused."""
MARGIN_STEP = 0.1
"""How far one answer moves the margin, in times of a full batch."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a batcher keeps to."""

    max_batch_rows: int
    """Larger queries are cut, smaller ones put together up to it."""
    max_queue_rows: int
    """Samples that may wait; a single query may exceed it when none waits."""
    max_queue_delay_s: float = 0.0
    """How long a query may wait for others while a worker idles."""
    depth: int = 2
    """Batches a worker may have at once; the second only when it is full."""
    hang_timeout_s: float = 10.0
    """A batch that takes longer has hung."""


class Batch(NamedTuple):
    """Parts that a worker scores at once."""

    worker: int
    parts: list[Part]
    num_rows: int
    reason: str
    """Why it left the queue: full, idle, delay, deadline, retry or drain."""
    sent_s: float
    predicted_s: float
    was_idle: bool
    """Whether the worker had nothing else."""


class Slot:
    """A worker as the batcher sees it.

    Attributes:
        running: What it has, the batch it computes first.
        started_s: When it began that.
        is_open: Whether it takes batches.
    """

    __slots__ = ("is_open", "running", "started_s")

    def __init__(self) -> None:
        self.running: deque[Batch] = deque()
        self.started_s = 0.0
        self.is_open = False

    def left_s(self, now: float) -> float:
        """Predicted time until it idles."""
        total = 0.0
        for batch in self.running:
            total += batch.predicted_s
        return max(total - (now - self.started_s), 0.0) if total else 0.0


class Batcher:
    """All queries of an engine that have no answer yet.

    Args:
        limits: What it keeps to.
        num_workers: Workers there are, none of them open yet.

    Attributes:
        cost: What batches take.
        margin: How far the predictions are off.
        dropped: Queries whose deadline cannot be met, dropped by `take`: for the caller to answer.
        flushes: Batches by reason.
        refused: Queries refused by cause.
        is_draining: Whether waiting for others is over.
    """

    def __init__(self, limits: Limits, num_workers: int) -> None:
        self.limits = limits
        self.cost = CostModel()
        self.margin = Margin()
        self.dropped: list[Entry] = []
        self.flushes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.is_draining = False
        self._waiting = Waiting()
        self._slots = [Slot() for _ in range(num_workers)]
        self._live: dict[int, Entry] = {}
        self._num_entries = 0
        self._num_open = 0
        self._handover_s = 0.0
        self._earliest_s = inf

    @property
    def queue_rows(self) -> int:
        """Samples that wait."""
        return self._waiting.num_rows

    @property
    def num_live(self) -> int:
        """Queries without an answer."""
        return len(self._live)

    @property
    def num_running(self) -> int:
        """Batches that workers have."""
        return sum(len(slot.running) for slot in self._slots)

    def running(self, worker: int) -> int:
        """Batches that a worker has."""
        return len(self._slots[worker].running)

    def open(self, worker: int) -> None:
        """A worker takes batches from now on."""
        self._set_open(worker, True)

    def close(self, worker: int) -> None:
        """A worker takes no more batches, and finishes those it has."""
        self._set_open(worker, False)

    def add(self, num_rows: int, deadline_s: float, priority: int, now: float) -> Entry:
        """Take a query on.

        Args:
            num_rows: Its samples, at least 1.
            deadline_s: By when its scores are of use.
            priority: 1 is the highest, 0 the lowest.
            now: The time, of the same clock.

        Raises:
            DeadlineExceeded: The deadline has passed already.
            Overloaded: It would not be answered in time, or too much waits.
        """
        waiting = self._waiting
        if now >= deadline_s:
            self.refused["deadline"] += 1
            raise DeadlineExceeded(
                f"the deadline passed {(now - deadline_s) * 1e3:.1f} ms before the query came; "
                "give it more time"
            )
        level = level_of(priority)
        latency_s = self.predict_s(num_rows, level, now)
        if waiting.num_rows and waiting.num_rows + num_rows > self.limits.max_queue_rows:
            self.refused["queue"] += 1
            raise Overloaded(
                f"{waiting.num_rows} rows wait, {self.limits.max_queue_rows} may: no room for "
                f"{num_rows} more; try again later",
                retry_after_s=max(latency_s / 2, 1e-3),
            )
        margin_s = min(self.margin.seconds, MARGIN_SHARE * (deadline_s - now))
        late_s = now + latency_s + margin_s - deadline_s
        if late_s > 0 and not self._is_idle():
            self.refused["predicted"] += 1
            raise Overloaded(
                f"scores of {num_rows} rows would come {late_s * 1e3:.1f} ms after the deadline "
                f"({waiting.num_rows} rows wait); try again later, or give more time",
                retry_after_s=max(late_s, 1e-3),
            )
        self._num_entries += 1
        entry = Entry(
            self._num_entries,
            num_rows,
            deadline_s,
            level=level,
            arrived_s=now,
            promised_s=now + latency_s,
        )
        self._live[entry.id] = entry
        self._earliest_s = min(self._earliest_s, deadline_s)
        self._cut(entry)
        return entry

    def predict_s(self, num_rows: int, level: int, now: float) -> float:
        """Predicted seconds until a query that comes now has its scores.

        The work before it is shared by all workers; the batch that its last part is in is not.
        """
        limits, cost = self.limits, self.cost
        rows_ahead, parts_ahead = self._waiting.ahead_of(level)
        num_parts = ceil(num_rows / limits.max_batch_rows)
        part_rows = ceil(num_rows / num_parts)
        last_rows = min(limits.max_batch_rows, part_rows + rows_ahead)
        shared_s = cost.batch_s * (num_parts - 1) + cost.row_s * (rows_ahead + num_rows - last_rows)
        if rows_ahead:
            parts_a_batch = max(limits.max_batch_rows * parts_ahead // rows_ahead, 1)
            shared_s += cost.batch_s * ceil(parts_ahead / parts_a_batch)
        if rows_ahead or self._idle_slot() is None:
            for slot in self._slots:
                shared_s += slot.left_s(now)
        num_workers = self._num_open or len(self._slots)
        return self._handover_s + shared_s / num_workers + cost.predict_s(last_rows)

    def take(self, now: float) -> Batch | None:
        """The next batch to send, or None where there is nothing to send, or reason to wait.

        Queries that cannot be in time any more go to `dropped`.
        """
        worker = self._idle_slot()
        was_idle = worker is not None
        if worker is None:
            worker = self._ahead_slot()
        if worker is None:
            return None
        reason = self._reason(now)
        if not reason:
            return None
        parts, num_rows, is_full = self._collect(now)
        if not parts:
            return None
        if parts[0].is_retried:
            reason = "retry"
        elif is_full:
            reason = "full"
        slot = self._slots[worker]
        batch = Batch(worker, parts, num_rows, reason, now, self.cost.predict_s(num_rows), was_idle)
        if was_idle:
            slot.started_s = now
        slot.running.append(batch)
        self.flushes[reason] += 1
        return batch

    def wake_s(self) -> float:
        """When `take` should be asked again if nothing else happens; infinity: need not be."""
        if not self._waiting.num_parts or self._idle_slot() is None:
            return inf
        oldest_s = self._waiting.oldest_s() + self.limits.max_queue_delay_s
        return min(oldest_s, self._earliest_s - self._need_s())

    def finished(self, worker: int, now: float, busy_s: float) -> Batch:
        """A worker is done with its first batch.

        Args:
            worker: Which.
            now: The time.
            busy_s: How long it computed.
        """
        slot = self._slots[worker]
        batch = slot.running.popleft()
        slot.started_s = now
        self.cost.observe(batch.num_rows, busy_s)
        if batch.was_idle:
            handover_s = max(now - batch.sent_s - busy_s, 0.0)
            self._handover_s += HANDOVER_SHARE * (handover_s - self._handover_s)
        for part in batch.parts:
            part.entry.parts_running -= 1
            part.entry.parts_left -= 1
        return batch

    def complete(self, entry: Entry, now: float) -> None:
        """All parts of a query are scored."""
        full_s = self.cost.predict_s(self.limits.max_batch_rows)
        self.margin.observe(now - entry.promised_s, MARGIN_STEP * full_s)
        self.end(entry)

    def end(self, entry: Entry) -> None:
        """A query has its answer, whatever it is; what waits of it is dropped."""
        if not entry.is_ended:
            entry.is_ended = True
            del self._live[entry.id]
            self._waiting.forget(entry)

    def lost(self, worker: int) -> list[Entry]:
        """A worker died: what it had waits again, in front.

        The batch it computed may be what killed it: each of its parts goes alone from then on.

        Returns:
            Queries whose part was in such a batch for the second time: for the caller to answer.
        """
        self._set_open(worker, False)
        running = self._slots[worker].running
        failed = []
        for index in reversed(range(len(running))):
            for part in reversed(running[index].parts):
                entry = part.entry
                entry.parts_running -= 1
                if entry.is_ended:
                    continue
                if part.is_retried and index == 0:
                    failed.append(entry)
                    continue
                part.is_retried = part.is_retried or index == 0
                self._waiting.push(part, is_first=True)
        running.clear()
        return failed

    def entries_of(self, worker: int) -> list[Entry]:
        """Queries of which a worker has a part."""
        return [part.entry for batch in self._slots[worker].running for part in batch.parts]

    def expired(self, now: float) -> list[Entry]:
        """Queries whose deadline passed: for the caller to answer."""
        if now < self._earliest_s:
            return []
        live = self._live.values()
        self._earliest_s = min((e.deadline_s for e in live if e.deadline_s > now), default=inf)
        return [entry for entry in live if entry.deadline_s <= now]

    def hung(self, now: float) -> list[int]:
        """Workers whose batch takes too long."""
        return [
            worker
            for worker, slot in enumerate(self._slots)
            if slot.running and now - slot.started_s > self.limits.hang_timeout_s
        ]

    def _set_open(self, worker: int, is_open: bool) -> None:
        slot = self._slots[worker]
        self._num_open += is_open - slot.is_open
        slot.is_open = is_open

    def _cut(self, entry: Entry) -> None:
        """Queue a query in parts of equal size."""
        num_parts = ceil(entry.num_rows / self.limits.max_batch_rows)
        size = ceil(entry.num_rows / num_parts)
        for start in range(0, entry.num_rows, size):
            entry.parts_left += 1
            self._waiting.push(Part(entry, start, min(start + size, entry.num_rows)))

    def _is_idle(self) -> bool:
        return not self._waiting.num_rows and self._idle_slot() is not None

    def _idle_slot(self) -> int | None:
        for worker, slot in enumerate(self._slots):
            if slot.is_open and not slot.running:
                return worker
        return None

    def _ahead_slot(self) -> int | None:
        """The worker that idles first and may have one more batch, where a full one waits."""
        if self.limits.depth < 2 or self._waiting.num_rows < self.limits.max_batch_rows:
            return None
        found = [
            (len(slot.running), slot.started_s, worker)
            for worker, slot in enumerate(self._slots)
            if slot.is_open and len(slot.running) < self.limits.depth
        ]
        return min(found)[2] if found else None

    def _reason(self, now: float) -> str:
        """Why a batch may leave now; empty: it should wait."""
        limits = self.limits
        if self.is_draining:
            return "drain"
        if not limits.max_queue_delay_s:
            return "idle"
        if self._waiting.num_rows >= limits.max_batch_rows:
            return "full"
        if now >= self._waiting.oldest_s() + limits.max_queue_delay_s:
            return "delay"
        return "deadline" if now >= self._earliest_s - self._need_s() else ""

    def _need_s(self) -> float:
        """How long before a deadline a batch of all that waits has to leave."""
        rows = min(self._waiting.num_rows, self.limits.max_batch_rows)
        return self._handover_s + self.cost.predict_s(rows) + self.margin.seconds

    def _collect(self, now: float) -> tuple[list[Part], int, bool]:
        """Parts for a batch, their rows, and whether more wait than it may hold."""
        waiting, most = self._waiting, self.limits.max_batch_rows
        parts: list[Part] = []
        num_rows = 0
        while (head := waiting.head()) is not None:
            entry = head.entry
            if self._is_late(head, now):
                self.end(entry)
                self.dropped.append(entry)
                continue
            if parts and (num_rows + head.num_rows > most or head.is_retried):
                return parts, num_rows, True
            waiting.pop()
            parts.append(head)
            num_rows += head.num_rows
            entry.parts_running += 1
            entry.first_sent_s = entry.first_sent_s or now
            if num_rows >= most or head.is_retried:
                return parts, num_rows, not head.is_retried
        return parts, num_rows, False

    def _is_late(self, part: Part, now: float) -> bool:
        """Whether a query cannot be in time; while little waits, it is tried until it is late."""
        entry = part.entry
        if self._waiting.num_rows <= self.limits.max_batch_rows:
            return now >= entry.deadline_s
        rows = max(part.num_rows, entry.rows_waiting // (self._num_open or 1))
        return now + self.cost.predict_s(rows) > entry.deadline_s
