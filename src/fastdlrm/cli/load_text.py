"""What `fastdlrm load` prints: lines of name and value."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fastdlrm.contracts.latency_bounded import Probe
    from fastdlrm.load.loadgen import LoadgenResult
    from fastdlrm.load.result import LoadResult, Percentiles, Sla
    from fastdlrm.load.search import SearchResult


def result_lines(result: "LoadResult") -> Iterator[str]:
    """A run."""
    yield _line("run", _run_text(result))
    yield _line("rate", _rate_text(result))
    if result.lateness_ms is not None:
        late = result.lateness_ms
        yield _line(
            "lateness",
            f"p50 {late.p50:.3f}  p99 {late.p99:.3f}  max {late.max:.3f} ms after the schedule "
            f"(p99 up to {result.lateness_limit_ms:.3g} ms is allowed)",
        )
    lost = result.num_queries - result.num_answered
    kinds = {**result.failures, "not answered": result.num_unfinished}
    lost_text = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    yield _line(
        "queries",
        f"{result.num_queries:,}, {lost:,} without scores" + f": {lost_text}" * bool(lost),
    )
    of = " of those answered" if lost else ""
    yield _line("latency", _percentiles_text(result.latency_ms) + of)
    yield _line("service", _percentiles_text(result.service_ms) + of)
    if result.sla is not None:
        yield _line("SLA", _sla_text(result.sla))
    if result.backlog is not None:
        backlog = result.backlog
        yield _line(
            "backlog", f"{backlog.at_third:.1f} at a third, {backlog.at_end:.1f} at the end"
        )
    yield _line("rows", f"{result.num_example_rows:,} distinct rows in the queries")
    for note in result.notes:
        yield _line("note", note)
    for why in result.invalid:
        yield _line("invalid", why)


def search_lines(result: "SearchResult") -> Iterator[str]:
    """A search."""
    yield _line(
        "qps_at_sla",
        f"{result.qps_at_sla:.1f} queries/s ({result.samples_per_s_at_sla:,.0f} samples/s): "
        f"p{result.percentile:g} within {result.sla_ms:g} ms, shown with confidence "
        f"{result.confidence:g}, to {result.tolerance:.0%}; {result.loop}",
    )
    if len(result.repeats) > 1:
        yield _line(
            "repeats",
            f"{len(result.repeats)}: {min(result.repeats):.1f} to {max(result.repeats):.1f}",
        )
    yield _line("probes", f"{len(result.probes)}")
    for why in result.invalid:
        yield _line("invalid", why)


def loadgen_lines(result: "LoadgenResult") -> Iterator[str]:
    """A run of LoadGen."""
    yield _line("LoadGen", f"{result.scenario}, {'VALID' if result.is_valid else 'INVALID'}")
    yield _line("rate", f"{result.samples_per_s:.1f} queries/s" + _planned_text(result))
    if result.latency_ms:
        parts = (f"p{level:g} {value:.3f}" for level, value in result.latency_ms)
        yield _line("latency", "  ".join(parts) + " ms")
    yield _line("queries", f"{result.num_queries:,}, {result.num_failed:,} without scores")
    for why in result.invalid:
        yield _line("invalid", why)


def tell_probe(probe: "Probe") -> None:
    """A probe of a search, on stderr as it ends."""
    p99 = "none answered" if probe.p99_ms is None else f"p99 {probe.p99_ms:.2f} ms"
    verdict = "passed" if probe.passed else f"not passed: {probe.why}"
    typer.echo(f"{probe.rate:10.1f} queries/s  {p99}  {verdict}", err=True)


def _line(name: str, text: str) -> str:
    return f"{name:<10}  {text}"


def _run_text(result: "LoadResult") -> str:
    plan = result.plan
    if plan.closed is not None:
        how = f"closed loop, {plan.closed} in flight"
    elif plan.trace:
        how = f"open loop, trace {plan.trace}"
    else:
        how = f"open loop, {plan.arrivals} arrivals"
    sizes = f"sizes {plan.sizes} (mean {result.mean_size:.1f})"
    return f"{how}, {sizes}, {plan.duration_s:g} s after {plan.warmup_seconds:g} s of warm-up"


def _rate_text(result: "LoadResult") -> str:
    planned = "" if result.planned_qps is None else f"planned {result.planned_qps:.1f}, "
    return (
        f"{planned}sent {result.sent_qps:.1f}, answered {result.answered_qps:.1f} queries/s "
        f"({result.answered_samples_per_s:,.0f} samples/s)"
    )


def _percentiles_text(times: "Percentiles | None") -> str:
    if times is None:
        return "no query was answered"
    return (
        f"p50 {times.p50:.3f}  p95 {times.p95:.3f}  p99 {times.p99:.3f}  "
        f"p99.9 {times.p999:.3f}  max {times.max:.3f} ms"
    )


def _sla_text(sla: "Sla") -> str:
    share = sla.num_over / sla.num_queries if sla.num_queries else 0.0
    return (
        f"{sla.outcome}: p{sla.percentile:g} within {sla.sla_ms:g} ms, confidence "
        f"{sla.confidence:g}; {sla.num_over:,} of {sla.num_queries:,} over it ({share:.2%})"
    )


def _planned_text(result: "LoadgenResult") -> str:
    return "" if result.planned_qps is None else f", planned {result.planned_qps:.1f}"
