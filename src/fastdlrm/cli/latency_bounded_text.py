"""What `fastdlrm bench latency-bounded` prints."""

from collections.abc import Iterator, Mapping
from statistics import median

import typer

from fastdlrm.cli.bench_text import heading, table
from fastdlrm.cli.load_text import tell_probe
from fastdlrm.contracts.bench_result import BenchResult
from fastdlrm.contracts.latency_bounded import LatencyBounded, OffloadStudy, Probe, Rung, Update

COLUMNS = ("B", "queries/s", "least", "most", "samples/s", "of ceiling", "p99 late ms", "", "valid")


def latency_bounded_lines(result: BenchResult) -> Iterator[str]:
    """A result: a row a B, then the tuned one against the static one."""
    found = result.latency_bounded
    assert found is not None
    yield from heading(result)
    kept = f"p{found.percentile:g} within {found.sla_ms:g} ms"
    how = f"confidence {found.confidence:g}" if found.mode == "search" else "the reference's way"
    yield f"{kept}, {how}; sizes {found.sizes}, {found.workers} workers, a thread each"
    marks = {"tuned": found.tuned, "static": found.static, "highest": found.argmax}
    yield from table(COLUMNS, (_row(rung, rung.rows, marks) for rung in found.rungs))
    path = ", ".join(map(str, found.visited))
    gain = "-" if found.tuned_to_static is None else f"{found.tuned_to_static:.2f}"
    yield f"tuned B {found.tuned} by way of {path}; static B {found.static}; tuned/static {gain}"
    if found.offload is not None:
        yield from _offload_lines(found, found.offload)
    for note in result.notes:
        yield f"note   {note}"


def _offload_lines(found: LatencyBounded, offload: OffloadStudy) -> Iterator[str]:
    """A row a threshold, then the tuned one against none."""
    marks = {"tuned": offload.tuned, "highest": offload.argmax}
    yield f"B {found.tuned}, queries from a size on whole to a worker on {offload.device}"
    columns = ("from samples", *COLUMNS[1:])
    yield from table(columns, (_row(rung, rung.offload_min_rows, marks) for rung in offload.rungs))
    gain = "-" if offload.tuned_to_none is None else f"{offload.tuned_to_none:.2f}"
    yield (
        f"tuned: from {offload.tuned or 'no size on'}, {offload.queries_share:.0%} of queries and "
        f"{offload.samples_share:.0%} of samples; tuned/none {gain}"
    )


def tell(rows: int, found: Probe | Update) -> None:
    """A probe, or an update of the reference's controller, on stderr as it ends."""
    typer.echo(f"B {rows:5}", nl=False, err=True)
    if isinstance(found, Probe):
        tell_probe(found)
        return
    late = "no scores" if found.percentile_ms is None else f"p95 {found.percentile_ms:.2f} ms"
    typer.echo(f"  mean gap {found.gap_ms:6.2f} ms  {late}", err=True)


def _row(rung: Rung, at: int, marks: Mapping[str, int | None]) -> list[str]:
    """A rung, named by its B or its threshold."""
    rate = median(rung.rates)
    late = [p.lateness_p99_ms for p in rung.probes if p.passed and p.lateness_p99_ms is not None]
    return [
        str(at),
        f"{rate:.1f}",
        f"{min(rung.rates):.1f}",
        f"{max(rung.rates):.1f}",
        f"{rung.samples_per_s:,.0f}",
        f"{rate / rung.ceiling_qps:.0%}",
        f"{max(late):.2f}" if late else "-",
        " ".join(name for name, where in marks.items() if where == at),
        "no" if rung.invalid else "yes",
    ]
