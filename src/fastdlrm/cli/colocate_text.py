"""What `fastdlrm bench colocate` prints."""

from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

from fastdlrm.cli.bench_text import heading, table
from fastdlrm.contracts.bench_result import BenchResult, Measurement
from fastdlrm.contracts.colocation import Curve

COLUMNS = (
    "model", "with", "tables", "copies", "mean ms", "p5", "p50", "p99", "p50 by job", "samples/s",
    "of one alone", "cores",
)  # fmt: skip


def colocate_lines(result: BenchResult) -> Iterator[str]:
    """A result: a row a case and model, then where the curves bend and what pairs cost."""
    found = result.colocation
    assert found is not None
    yield from heading(result)
    alone = {
        (one.key["model"], one.key["tables"]): one.samples_per_s or 0.0
        for one in result.measurements
        if one.key["copies"] == "1"
    }
    yield from table(COLUMNS, (_row(one, alone, result.settings) for one in result.measurements))
    yield ""
    for curve in found.curves:
        yield _curve_line(curve)
    for pair in found.pairs:
        yield (
            f"pair   {pair.model} with {pair.partner}, {pair.tables} tables, {pair.copies} copies: "
            f"median {pair.ratio:.3f} times that with itself ({pair.low:.3f} to {pair.high:.3f})"
        )
    for note in result.notes:
        yield f"note   {note}"


def _row(
    found: Measurement, alone: dict[tuple[str, str], float], settings: dict[str, Any]
) -> list[str]:
    key, summary, rate = found.key, found.summary, found.samples_per_s or 0.0
    single = alone.get((key["model"], key["tables"]))
    return [
        key["model"],
        key["with"] if key["with"] != key["model"] else "",
        key["tables"],
        key["copies"],
        _number(summary.mean),
        _number(summary.p5),
        _number(summary.median),
        _number(summary.p99),
        _by_job(found),
        f"{rate:,.0f}",
        f"{rate / single:.2f}" if single else "-",
        _cores(int(key["copies"]), settings),
    ]


def _by_job(found: Measurement) -> str:
    """The median of the fastest job and of the slowest one."""
    times: dict[int, list[float]] = {}
    for samples, counts in zip(found.rounds, found.num_by_job, strict=True):
        edges = [sum(counts[:place]) for place in range(len(counts) + 1)]
        for job, (first, last) in enumerate(pairwise(edges)):
            times.setdefault(job, []).extend(samples[first:last])
    medians = sorted(median(values) for values in times.values() if values)
    if len(medians) == 1:
        return ""
    return f"{medians[0]:.4g} to {medians[-1]:.4g}"


def _cores(copies: int, settings: dict[str, Any]) -> str:
    if copies > settings["num_cores"]:
        return "oversubscribed"
    return "SMT" if copies > settings["num_physical_cores"] else "own"


def _curve_line(curve: Curve) -> str:
    bend = "no knee as far as measured"
    if curve.knee is not None:
        bend = f"knee at {curve.knee}: {curve.reason}"
    line = f"copies of {curve.model}, {curve.tables} tables: {bend}"
    if curve.sla_ms is None:
        return line
    most = curve.copies_at_sla
    keep = "none is known to keep" if most is None else f"up to {most} keep"
    return f"{line}; {keep} p99 <= {curve.sla_ms:g} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
