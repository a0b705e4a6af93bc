"""What `fastdlrm bench latency-bounded` prints."""

from collections.abc import Iterator
from statistics import median

import typer

from fastdlrm.cli.bench_text import heading, table
from fastdlrm.cli.load_text import tell_probe
from fastdlrm.contracts.bench_result import BenchResult
from fastdlrm.contracts.latency_bounded import LatencyBounded, Probe, Rung, Update

COLUMNS = ("B", "queries/s", "least", "most", "samples/s", "of ceiling", "p99 late ms", "", "valid")


def latency_bounded_lines(result: BenchResult) -> Iterator[str]:
    """A result: a row a B, then the tuned one against the static one."""
    found = result.latency_bounded
    assert found is not None
    yield from heading(result)
    kept = f"p{found.percentile:g} within {found.sla_ms:g} ms"
    how = f"confidence {found.confidence:g}" if found.mode == "search" else "the reference's way"
    yield f"{kept}, {how}; sizes {found.sizes}, {found.workers} workers, a thread each"
    yield from table(COLUMNS, (_row(rung, found) for rung in found.rungs))
    path = ", ".join(map(str, found.visited))
    gain = "-" if found.tuned_to_static is None else f"{found.tuned_to_static:.2f}"
    yield f"tuned B {found.tuned} by way of {path}; static B {found.static}; tuned/static {gain}"
    for note in result.notes:
        yield f"note   {note}"


def tell(rows: int, found: Probe | Update) -> None:
    """A probe, or an update of the reference's controller, on stderr as it ends."""
    typer.echo(f"B {rows:5}", nl=False, err=True)
    if isinstance(found, Probe):
        tell_probe(found)
        return
    late = "no scores" if found.percentile_ms is None else f"p95 {found.percentile_ms:.2f} ms"
    typer.echo(f"  mean gap {found.gap_ms:6.2f} ms  {late}", err=True)


def _row(rung: Rung, found: LatencyBounded) -> list[str]:
    rate = median(rung.rates)
    late = [p.lateness_p99_ms for p in rung.probes if p.passed and p.lateness_p99_ms is not None]
    marks = {"tuned": found.tuned, "static": found.static, "highest": found.argmax}
    return [
        str(rung.rows),
        f"{rate:.1f}",
        f"{min(rung.rates):.1f}",
        f"{max(rung.rates):.1f}",
        f"{rung.samples_per_s:,.0f}",
        f"{rate / rung.ceiling_qps:.0%}",
        f"{max(late):.2f}" if late else "-",
        " ".join(name for name, rows in marks.items() if rows == rung.rows),
        "no" if rung.invalid else "yes",
    ]
