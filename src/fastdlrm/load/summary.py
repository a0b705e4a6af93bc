"""Samples of a run -> what they say."""

from collections import Counter
from datetime import UTC, datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.load.plan import Plan
from fastdlrm.load.result import Backlog, LoadResult, Percentiles, Second, Sla, SlaOutcome
from fastdlrm.load.samples import BROKEN, UNFINISHED, Samples
from fastdlrm.stats import (
    Histogram,
    binomial_at_least,
    binomial_at_most,
    fewest_trials,
    percentile,
    percentiles,
)

LEAST_SENT_SHARE = 0.98
Floats = NDArray[np.float64]


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """What the generator says of itself."""

    num_connections: int = 0
    num_waited: int = 0
    cpu_share: float = 0.0
    priority: str = "normal"
    num_example_rows: int = 0
    unused_columns: tuple[str, ...] = ()
    """Of the rows, that the model does not take."""
    started: str = ""
    """Date and time, UTC."""
    start_at: float = 0.0
    """The same by `perf_counter`: what all of the samples' times count from."""


def summarise(samples: Samples, plan: Plan, generator: Generator | None = None) -> LoadResult:
    """Say what a run found.

    Args:
        samples: Of the whole run, warm-up included, in order of arrival.
        plan: What was planned.
        generator: What the generator says of itself.
    """
    generator = generator or Generator(started=datetime.now(UTC).isoformat(timespec="seconds"))
    start_s, stop_s = _measured_time(samples, plan)
    measured = samples.between(start_s, stop_s)
    length_s = stop_s - start_s
    is_open = plan.closed is None
    answered = measured.is_answered
    latency_ms = (measured.done_s - measured.scheduled_s) * 1e3
    service_ms = (measured.done_s - measured.sent_s) * 1e3
    came = samples.is_answered & (samples.done_s >= start_s) & (samples.done_s < stop_s)
    num_sent = int(np.isfinite(measured.sent_s).sum())
    lateness = _lateness(measured, stop_s + plan.drain_s) if is_open else None
    invalid = _invalid(plan, lateness, num_sent, measured, generator)
    backlog = _backlog(samples, start_s, stop_s) if is_open else None
    unfinished = int((measured.status == UNFINISHED).sum())
    return LoadResult(
        plan=plan,
        loop=plan.loop,
        is_valid=not invalid,
        invalid=invalid,
        notes=_notes(plan, backlog, len(measured.size), generator),
        started=generator.started,
        planned_qps=len(measured.size) / length_s if is_open else None,
        sent_qps=num_sent / length_s,
        answered_qps=int(came.sum()) / length_s,
        answered_samples_per_s=int(samples.size[came].sum()) / length_s,
        mean_size=float(measured.size.mean()) if len(measured.size) else 0.0,
        num_queries=len(measured.size),
        num_answered=int(answered.sum()),
        num_unfinished=unfinished,
        failures=_failures(measured),
        latency_ms=_percentiles(latency_ms[answered]),
        service_ms=_percentiles(service_ms[answered]),
        lateness_ms=lateness,
        lateness_limit_ms=plan.lateness_limit_ms,
        all_latency_ms=_all_latency(np.where(answered, latency_ms, np.inf), plan.percentile),
        sla=_sla(plan, np.where(answered, latency_ms, np.inf)),
        backlog=backlog,
        seconds=_seconds(measured, latency_ms, start_s),
        histogram_us=_histogram(latency_ms[answered]),
        num_connections=generator.num_connections,
        num_waited=generator.num_waited,
        cpu_share=generator.cpu_share,
        priority=generator.priority,
        num_example_rows=generator.num_example_rows,
    )


def _measured_time(samples: Samples, plan: Plan) -> tuple[float, float]:
    """Start and end of what is measured; a trace may end before its plan."""
    start_s = plan.warmup_seconds
    stop_s = start_s + plan.duration_s
    if plan.arrivals == "trace" and len(samples.scheduled_s):
        last_s = float(samples.scheduled_s[-1])
        stop_s = min(stop_s, float(np.nextafter(last_s, np.inf)))
    return start_s, stop_s


def _percentiles(values: Floats) -> Percentiles | None:
    if not len(values):
        return None
    p50, p90, p95, p99, p999, most = percentiles(values, (50, 90, 95, 99, 99.9, 100))
    return Percentiles(
        mean=float(values.mean()), p50=p50, p90=p90, p95=p95, p99=p99, p999=p999, max=most
    )


def _lateness(measured: Samples, end_s: float) -> Percentiles | None:
    """Of queries that were never sent, how late they were when the run ended."""
    sent_s = np.where(np.isnan(measured.sent_s), end_s, measured.sent_s)
    return _percentiles((sent_s - measured.scheduled_s) * 1e3)


def _all_latency(latency_ms: Floats, level: float) -> float | None:
    if not len(latency_ms):
        return None
    found = percentile(latency_ms, level)
    return found if np.isfinite(found) else None


def _invalid(
    plan: Plan,
    lateness: Percentiles | None,
    num_sent: int,
    measured: Samples,
    generator: Generator,
) -> tuple[str, ...]:
    """Why the run does not show what its plan says."""
    if not len(measured.size):
        return ("no query was measured",)
    if plan.closed is not None:
        return ()
    found = []
    if lateness is not None and not lateness.p99 <= plan.lateness_limit_ms:
        found.append(
            f"queries were sent late: p99 {lateness.p99:.3f} ms after their time, "
            f"{plan.lateness_limit_ms:.3f} ms is allowed; {_advice(plan, generator)}"
        )
    if num_sent < LEAST_SENT_SHARE * len(measured.size):
        found.append(
            f"{num_sent} of {len(measured.size)} planned queries were sent, "
            f"{LEAST_SENT_SHARE:.0%} is the least; {_advice(plan, generator)}"
        )
    return tuple(found)


def _advice(plan: Plan, generator: Generator) -> str:
    if generator.num_waited:
        return (
            f"{generator.num_waited} of them waited for one of {plan.max_connections} connections, "
            "all taken by queries that the server had not answered: raise max_connections"
        )
    if generator.cpu_share > 0.7:
        return (
            "the generator's processes were busy: raise processes, or give them cores of their own"
        )
    return "give the generator a core of its own, or allow more by max_lateness_ms"


def _notes(
    plan: Plan, backlog: Backlog | None, num_queries: int, generator: Generator
) -> tuple[str, ...]:
    notes = []
    if plan.closed is not None:
        notes.append(
            f"closed loop of {plan.closed} queries in flight: the server sets the rate, and its "
            "latency says nothing of that under a given rate"
        )
    if plan.arrivals == "reference_poisson_ms":
        notes.append("arrivals are smoother than a Poisson process: latencies are too low")
    if backlog is not None and backlog.is_growing:
        notes.append("the backlog grew to the end: latency depends on the length of the run")
    needed = fewest_trials(1 - plan.percentile / 100, 0, plan.confidence)
    if num_queries < needed:
        notes.append(
            f"{num_queries} queries are too few for p{plan.percentile:g} with confidence "
            f"{plan.confidence:g}; it takes {needed} and more"
        )
    if generator.unused_columns:
        notes.append(
            f"the model takes no {', '.join(generator.unused_columns)}: not sent, though the rows "
            "have it"
        )
    return tuple(notes)


def _failures(measured: Samples) -> dict[str, int]:
    counts = Counter(
        measured.status[~measured.is_answered & (measured.status != UNFINISHED)].tolist()
    )
    return {
        "connection failed" if status == BROKEN else f"HTTP {status}": count
        for status, count in sorted(counts.items())
    }


def _sla(plan: Plan, latency_ms: Floats) -> Sla | None:
    if plan.sla_ms is None:
        return None
    num, over = len(latency_ms), int((latency_ms > plan.sla_ms).sum())
    share = 1 - plan.percentile / 100
    outcome: SlaOutcome = "undecided"
    if binomial_at_most(num, share, over) <= 1 - plan.confidence:
        outcome = "met"
    elif binomial_at_least(num, share, over) <= 1 - plan.confidence:
        outcome = "missed"
    return Sla(
        sla_ms=plan.sla_ms,
        percentile=plan.percentile,
        confidence=plan.confidence,
        outcome=outcome,
        num_queries=num,
        num_over=over,
        fewest_queries=fewest_trials(share, over, plan.confidence),
    )


BACKLOG_POINTS = 3000


def _backlog(samples: Samples, start_s: float, stop_s: float) -> Backlog:
    """Queries in the system, at even points of the measured time."""
    gone_s = np.sort(np.where(np.isnan(samples.done_s), np.inf, samples.done_s))
    points = np.linspace(start_s, stop_s, BACKLOG_POINTS, endpoint=False)
    waiting = np.searchsorted(samples.scheduled_s, points, side="right") - np.searchsorted(
        gone_s, points, side="right"
    )
    tenth, third = BACKLOG_POINTS // 10, BACKLOG_POINTS // 3
    at_third = float(waiting[third - tenth // 2 : third + tenth // 2].mean())
    at_end = float(waiting[-tenth:].mean())
    middle = waiting[third : 2 * third]
    sigma = max(float(middle.std()), float(np.sqrt(middle.mean())))
    return Backlog(
        at_third=at_third, at_end=at_end, sigma=sigma, is_growing=at_end > at_third + 3 * sigma
    )


def _seconds(measured: Samples, latency_ms: Floats, start_s: float) -> tuple[Second, ...]:
    seconds = (measured.scheduled_s - start_s).astype(np.int64)
    found = []
    edges = np.flatnonzero(np.diff(seconds)) + 1
    for places in np.split(np.arange(len(seconds)), edges):
        if not len(places):
            continue
        times = latency_ms[places][measured.is_answered[places]]
        p50, p99, most = percentiles(times, (50, 99, 100)) if len(times) else (None, None, None)
        found.append(
            Second(
                at_s=int(seconds[places[0]]),
                num_queries=len(places),
                num_answered=len(times),
                p50_ms=p50,
                p99_ms=p99,
                max_ms=most,
            )
        )
    return tuple(found)


def _histogram(latency_ms: Floats) -> tuple[tuple[int, int], ...]:
    histogram = Histogram()
    histogram.add(np.maximum(latency_ms * 1e3, 0).astype(np.int64))
    return tuple(histogram.buckets())
