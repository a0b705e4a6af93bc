"""What `fastdlrm bench roofline` prints."""

from collections.abc import Iterator, Sequence

from fastdlrm.cli.bench_text import heading, table
from fastdlrm.contracts.bench_result import BenchResult, Measurement
from fastdlrm.contracts.roofline import Ceilings, Placed, PlacedStep

PLACED_COLUMNS = (
    "pass", "batch_size", "operator", "ms", "FLOP", "bytes", "FLOP/byte", "GFLOP/s", "GB/s",
    "bound", "floor ms", "of ceiling", "fixed ms",
)  # fmt: skip


def roofline_lines(result: BenchResult) -> Iterator[str]:
    """Ceilings, every step under them, and what would help it most."""
    found = result.roofline
    assert found is not None
    yield from heading(result)
    yield from ceiling_lines(found.ceilings)
    products = [m for m in result.measurements if _is_layer(m)]
    if products:
        yield ""
        yield "products of the layers' shapes, alone"
        yield from table(
            ("type", "product, M x K x N", "GFLOP/s", "of fastest"),
            (_product_row(one, found.ceilings) for one in products),
        )
    yield ""
    yield from table(PLACED_COLUMNS, _placed_rows(found.steps))
    yield ""
    for step in found.steps:
        yield f"{step.kind} of {step.batch_size}: {step.advice.sentence}"
    for note in result.notes:
        yield f"note   {note}"


def ceiling_lines(found: Ceilings) -> Iterator[str]:
    """A line a ceiling."""
    yield f"memory in order  {found.memory_gb_s:.4g} GB/s"
    cached = sorted(found.stream_gb_s.items())[:-1]
    speeds = ", ".join(f"{size >> 20} MiB {speed:.4g}" for size, speed in cached)
    yield f"in caches        {speeds} GB/s"
    rates = {
        "rows gathered": found.gather_gb_s,
        "host to device": found.host_to_device_gb_s,
        "device to host": found.device_to_host_gb_s,
        "all-to-all": found.all_to_all_gb_s,
    }
    for name, rate in rates.items():
        if rate is not None:
            yield f"{name:<16} {rate:.4g} GB/s"
    products = ", ".join(f"{name} {speed:,.0f}" for name, speed in found.gflop_s.items())
    yield f"products         {products} GFLOP/s"


def _is_layer(found: Measurement) -> bool:
    is_product = found.key.get("ceiling", "").startswith("gemm ")
    return is_product and not found.key["of"].startswith("large ")


def _product_row(found: Measurement, ceilings: Ceilings) -> list[str]:
    name = found.key["ceiling"].removeprefix("gemm ")
    share = found.giga_per_s / ceilings.gflop_s[name]
    return [name, found.key["of"], f"{found.giga_per_s:,.4g}", f"{share:.0%}"]


def _placed_rows(steps: Sequence[PlacedStep]) -> Iterator[list[str]]:
    for step in steps:
        for placed in (step.step, *step.operators):
            yield [step.kind, str(step.batch_size), *_placed_cells(placed)]


def _placed_cells(placed: Placed) -> list[str]:
    is_counted = placed.num_bytes > 0 and placed.ms > 0
    return [
        placed.operator,
        f"{placed.ms:.4g}",
        f"{placed.flop:.3g}" if is_counted else "-",
        f"{placed.num_bytes:.3g}" if is_counted else "-",
        f"{placed.intensity:.3g}" if is_counted else "-",
        f"{placed.flop / placed.ms / 1e6:.4g}" if is_counted else "-",
        f"{placed.num_bytes / placed.ms / 1e6:.4g}" if is_counted else "-",
        placed.bound,
        f"{placed.floor_ms:.3g}",
        f"{placed.share:.0%}" if is_counted else "-",
        f"{placed.fixed_ms:.3g}",
    ]
