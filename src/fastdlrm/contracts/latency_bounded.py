"""A server's rate within an SLA, as searches found it: every probe, and what follows for B.

B is the most samples of a part: the server cuts each query into parts of at most B.
"""

from typing import Literal

import msgspec

Mode = Literal["search", "reference"]
"""search: open loop, bisected; reference: the controller of DeepRecSys' repository."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One rate that was tried."""

    rate: float
    seed: int
    passed: bool
    why: str
    """It did not pass; empty where it did."""
    by_generator: bool
    """Whether it is the generator that could not: such a probe says nothing of the server."""
    answered_qps: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    all_latency_ms: float | None
    """At the plan's percentile, of all queries."""
    num_queries: int
    num_over: int
    lateness_p99_ms: float | None
    histogram_us: tuple[tuple[int, int], ...]
    """Latency of those answered: largest value of a bucket in microseconds, and its count."""


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of the reference's controller."""

    gap_ms: float
    """Mean gap between queries while its window was filled."""
    percentile_ms: float | None
    """Of the window, from when queries were sent; None: too many were not answered with scores."""


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """What was found for one B."""

    rows: int
    """B."""
    offload_min_rows: int = 0
    """Samples of a query from which on it was offloaded whole; 0: none was."""
    rates: tuple[float, ...]
    """Queries a second, a seed each; 0 where no rate passed."""
    samples_per_s: float
    """At the median rate."""
    ceiling_qps: float
    """If workers did nothing but compute, alone, and never waited."""
    probes: tuple[Probe, ...] = ()
    """Of all seeds, in order."""
    updates: tuple[tuple[Update, ...], ...] = ()
    """In mode "reference" instead, a seed each."""
    invalid: tuple[str, ...] = ()
    """Why the rates may not be the server's."""


class OffloadStudy(msgspec.Struct, frozen=True, kw_only=True):
    """A study of the size from which on queries go whole to a worker of another kind, at the B
    where the climb before it stopped.

    Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772, section IV.
    """

    device: str
    """Of that worker."""
    rungs: tuple[Rung, ...]
    """Those measured, thresholds ascending, without the one of no offloading."""
    tuned: int
    """Threshold where the climb down from no offloading stopped; 0: at no offloading."""
    visited: tuple[int, ...]
    """By the climb, in order."""
    argmax: int | None
    """Threshold of the highest rate, 0 for none; None where not all were measured."""
    tuned_to_none: float | None
    """Ratio of the median rates with the tuned threshold and without offloading; None where no rate
    passed."""
    queries_share: float
    """Of the queries, those offloaded at the tuned threshold."""
    samples_share: float
    """Of their samples."""


class LatencyBounded(msgspec.Struct, frozen=True, kw_only=True):
    """A study of B."""

    mode: Mode
    sla_ms: float
    percentile: float
    confidence: float
    """With which a probe that passed shows that the SLA is kept."""
    sizes: str
    """Samples a query, as `fastdlrm load --sizes` names them."""
    workers: int
    is_quick: bool
    rungs: tuple[Rung, ...]
    """Those measured, B ascending."""
    static: int
    """B without tuning: the largest query dealt out to all workers."""
    tuned: int
    """Where the hill climb stopped."""
    visited: tuple[int, ...]
    """By the climb, in order."""
    argmax: int | None
    """B of the highest rate; None where not all were measured."""
    tuned_to_static: float | None
    """Ratio of the median rates; None where the static B was not measured, or no rate passed."""
    offload: OffloadStudy | None = None
    """None where nothing was offloaded."""
