"""The last minutes of traffic, second by second: what the page and `/v1/status` show.

Latencies are counted in bins 1/16 of an octave wide, so a percentile is off by at most 2.2 %.
Invariant: `tick` is called once a second; between ticks an observation touches one list entry.
"""

from collections import deque
from math import log2

BINS_PER_OCTAVE = 16
NUM_BINS = 27 * BINS_PER_OCTAVE  # 1 us to 134 s
HISTORY_S = 300


class Second:
    """What happened in one second.

    Attributes:
        queries: Queries answered with scores.
        rows: Samples of them.
        errors: Requests for scores that brought none, shed ones and missed deadlines too.
        shed: Queries refused because they would not be answered in time.
        missed: Queries whose deadline passed.
        batches: Batches computed.
        batch_rows: Samples of them.
        batch_fill: Sum over them of the share of the most a batch may hold.
        queue_rows: Samples that waited when the second ended.
    """

    __slots__ = (
        "batch_fill",
        "batch_rows",
        "batches",
        "bins",
        "errors",
        "missed",
        "queries",
        "queue_rows",
        "rows",
        "shed",
    )

    def __init__(self) -> None:
        self.queries = 0
        self.rows = 0
        self.errors = 0
        self.shed = 0
        self.missed = 0
        self.batches = 0
        self.batch_rows = 0
        self.batch_fill = 0.0
        self.queue_rows = 0
        self.bins = [0] * NUM_BINS

    def add(self, other: "Second") -> None:
        """Add another second's counts; `queue_rows` becomes the larger."""
        self.queries += other.queries
        self.rows += other.rows
        self.errors += other.errors
        self.shed += other.shed
        self.missed += other.missed
        self.batches += other.batches
        self.batch_rows += other.batch_rows
        self.batch_fill += other.batch_fill
        self.queue_rows = max(self.queue_rows, other.queue_rows)
        self.bins = [a + b for a, b in zip(self.bins, other.bins, strict=True)]

    def latency_ms(self, share: float) -> float | None:
        """The latency that a share of the queries stays at or below; None without queries."""
        if not self.queries:
            return None
        wanted, reached = share * self.queries, 0
        for bin_, count in enumerate(self.bins):
            reached += count
            if count and reached >= wanted:
                return float(2 ** ((bin_ + 0.5) / BINS_PER_OCTAVE) / 1000)
        return None


class Recent:
    """Counts by second, of the second under way and of those before it."""

    def __init__(self) -> None:
        self.now = Second()
        self._past: deque[tuple[float, Second]] = deque(maxlen=HISTORY_S)

    def answered(self, latency_ns: int, rows: int) -> None:
        """Count a query that was answered with scores."""
        now = self.now
        now.queries += 1
        now.rows += rows
        bin_ = int(log2(max(latency_ns, 1000) / 1000) * BINS_PER_OCTAVE)
        now.bins[min(bin_, NUM_BINS - 1)] += 1

    def tick(self, time_s: float, queue_rows: int) -> None:
        """End the second under way.

        Args:
            time_s: Its end, seconds since 1970.
            queue_rows: Samples that wait now.
        """
        self.now.queue_rows = queue_rows
        self._past.append((time_s, self.now))
        self.now = Second()

    def over(self, seconds: int) -> tuple[int, Second]:
        """The last whole seconds, summed, and how many they are."""
        last = [second for _, second in list(self._past)[-seconds:]]
        total = Second()
        for second in last:
            total.add(second)
        return len(last), total

    def since(self, time_s: float) -> list[tuple[float, Second]]:
        """The whole seconds that ended after a time, each with its end."""
        return [pair for pair in self._past if pair[0] > time_s]
