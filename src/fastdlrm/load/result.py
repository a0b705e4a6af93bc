"""What a run found: plain data, for JSON and for other parts of the project."""

from typing import Literal

import msgspec

from fastdlrm.load.plan import Plan

SlaOutcome = Literal["met", "missed", "undecided"]


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of times in milliseconds; each is one that was measured."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


class Sla(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the agreed latency was kept, and how surely that is known."""

    sla_ms: float
    percentile: float
    confidence: float
    outcome: SlaOutcome
    """met: that fewer than 100 - percentile percent of queries are over it is shown with the
    confidence; missed: that more are; undecided: there were too few queries to show either."""
    num_queries: int
    num_over: int
    """Later than that, refused, failed or not answered."""
    fewest_queries: int
    """That would show it is met, with as many over it."""


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """Queries that had arrived and were not answered."""

    at_third: float
    """Mean over a tenth of the measured time about its first third."""
    at_end: float
    """Mean over its last tenth."""
    sigma: float
    """Standard deviation in its middle third, or the square root of its mean where that is more."""
    is_growing: bool
    """at_end > at_third + 3 sigma: the queue has no bound."""


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """Queries that were scheduled in one second of the measured time."""

    at_s: int
    num_queries: int
    num_answered: int
    p50_ms: float | None
    """Latency of those answered; None where none was."""
    p99_ms: float | None
    max_ms: float | None


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run; counts and times are of the queries scheduled after the warm-up."""

    plan: Plan
    loop: str
    """"open loop" or "closed loop"."""
    is_valid: bool
    """Whether the generator did as planned; whether the server did is another matter."""
    invalid: tuple[str, ...]
    """Why not."""
    notes: tuple[str, ...]
    """What a reader should know besides."""
    started: str
    """Date and time, UTC."""
    planned_qps: float | None
    """None in a closed loop."""
    sent_qps: float
    answered_qps: float
    """Answers with scores that came in the measured time."""
    answered_samples_per_s: float
    mean_size: float
    """Samples a query."""
    num_queries: int
    num_answered: int
    """With scores."""
    num_unfinished: int
    """Neither answered nor failed when the run ended."""
    failures: dict[str, int]
    """Queries by what became of them instead: "HTTP 503", "connection failed"."""
    latency_ms: Percentiles | None
    """Done minus scheduled, of those answered; None where none was."""
    service_ms: Percentiles | None
    """Done minus sent, of those answered."""
    lateness_ms: Percentiles | None
    """Sent minus scheduled: the generator's own; None in a closed loop."""
    lateness_limit_ms: float
    """Of its 99th percentile."""
    all_latency_ms: float | None
    """Latency at the plan's percentile where those not answered count as later than all others;
    None = it is one of these."""
    sla: Sla | None
    backlog: Backlog | None
    """None in a closed loop."""
    seconds: tuple[Second, ...]
    histogram_us: tuple[tuple[int, int], ...]
    """Latency of those answered: largest value of a bucket in microseconds, and its count."""
    num_connections: int
    num_waited: int
    """Queries that found no connection free."""
    cpu_share: float
    """Of one core, that the busiest generator process used; near 1 it was the bottleneck."""
    priority: str
    """The generator's: "real time", ahead of all that computes on its cores, or "normal"."""
    num_example_rows: int
    """Distinct rows that the queries were made of."""
