"""What an engine tells of itself: while it works, and when asked."""

from typing import Protocol

import msgspec


class Observer(Protocol):
    """Is told what an engine does."""

    def flushed(self, reason: str, rows: int, fill: float) -> None:
        """A batch left the queue: why, its samples, its share of the most a batch may hold."""
        ...


class EngineStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine did since its start."""

    num_answered: int
    """Queries that got scores."""
    num_failed: int
    """Queries taken on that got an error."""
    num_cancelled: int
    refused: dict[str, int]
    """Queries not taken on, by cause."""
    flushes: dict[str, int]
    """Batches by why they left the queue."""
    num_rows: int
    """Samples of all batches."""
    num_in_flight: int
    """Queries without an answer."""
    num_running: int
    """Batches that workers have."""
    queue_rows: int
    num_workers: int
    num_restarts: int
    arena_used_bytes: int
    batch_s: float
    """Predicted seconds of a batch, however few its rows."""
    row_s: float
    """Predicted seconds of each row."""
