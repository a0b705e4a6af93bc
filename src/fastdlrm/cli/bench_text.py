"""What `fastdlrm bench` prints."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastdlrm.contracts.bench_result import BenchResult, Measurement
from fastdlrm.contracts.host import Fingerprint
from fastdlrm.report.bench_operators import counters, intensity, shares, steps

if TYPE_CHECKING:
    from fastdlrm.bench.compare import Comparison, Row


def result_lines(result: BenchResult) -> Iterator[str]:
    """A result: what was run, where, and a table of its measurements."""
    yield from heading(result)
    if result.benchmark == "operators":
        yield from operator_lines(result.measurements)
    else:
        yield from table([*result.measurements[0].key, *COLUMNS], map(row, result.measurements))
    for note in result.notes:
        yield f"note   {note}"


def heading(result: BenchResult) -> Iterator[str]:
    """What was run, and where."""
    yield f"{result.benchmark}  {result.model}, rows_scale {result.rows_scale:g}, {result.device}"
    yield f"host   {host_text(result.host)}"
    yield f"float32 products: {result.matmul}; {result.host.num_threads} threads"
    yield ""


COLUMNS = ("median ms", "95 % interval", "p95", "p99", "samples/s", "n", "stopped by")


def row(found: Measurement) -> list[str]:
    """A measurement as a row under its key's names and `COLUMNS`."""
    summary = found.summary
    rate = "" if found.samples_per_s is None else f"{found.samples_per_s:,.0f}"
    return [
        *found.key.values(),
        f"{summary.median:.4g}",
        f"{summary.low:.4g} to {summary.high:.4g}",
        _number(summary.p95),
        _number(summary.p99),
        rate,
        str(summary.num_samples),
        found.stopped,
    ]


def operator_lines(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Shares of the profiled time and what the shapes say, a step a row; then the counters."""
    found = steps(measurements)
    names = [name for name in next(iter(found.values())) if name != "step"]
    counted = [name for name in names if name != "other"]
    columns = ["pass", "batch_size", "step ms", *(f"{name} %" for name in names)]
    columns += [f"{name} FLOP/byte" for name in counted] + ["GFLOP/s", "GB/s"]
    yield from table(columns, (_step_row(*step, names, counted) for step in found.items()))
    for (kind, size), step in found.items():
        values, reasons = counters(step)
        said = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        for text in filter(None, [said, *reasons]):
            yield f"counters, {kind} of {size}: {text}"


def _step_row(
    key: tuple[str, str],
    step: dict[str, Measurement],
    names: Sequence[str],
    counted: Sequence[str],
) -> list[str]:
    whole = step["step"]
    seconds = whole.summary.median / 1e3
    return [
        *key,
        f"{whole.summary.median:.4g}",
        *(f"{share:.1%}".removesuffix("%") for share in shares(step, names)),
        *(f"{intensity(step[name]):.3g}" for name in counted),
        f"{(whole.flop or 0) / seconds / 1e9:.4g}",
        f"{(whole.num_bytes or 0) / seconds / 1e9:.4g}",
    ]


def comparison_lines(found: "Comparison") -> Iterator[str]:
    """Results side by side; B, C, ... over A."""
    letters = [chr(ord("A") + place) for place in range(len(found.files))]
    yield f"{found.benchmark}  {found.model}, rows_scale {found.rows_scale:g}"
    for letter, file in zip(letters, found.files, strict=True):
        yield f"{letter}  {file}"
    for name, values in found.differences.items():
        said = zip(letters, values, strict=True)
        yield f"{name}: " + "; ".join(f"{letter} {value}" for letter, value in said)
    yield ""
    names = list(dict.fromkeys(name for row in found.rows for name in row.key))
    columns = [*names, *(f"{letter} {found.rows[0].unit}" for letter in letters)]
    for letter in letters[1:]:
        columns += [f"{letter}/A", "95 % interval", f"{letter} is"]
    yield from table(columns, (_comparison_row(row, names) for row in found.rows))
    yield f"differences up to {found.noise:.3g} of the time, or within the interval, count as none"
    for warning in found.warnings:
        yield f"warning  {warning}"
    if found.left_out:
        yield f"not in all, or too short to compare: {'; '.join(found.left_out)}"


def _comparison_row(row: "Row", names: Sequence[str]) -> list[str]:
    cells = [
        *(row.key.get(name, "") for name in names),
        *(f"{median:.4g}" for median in row.medians),
    ]
    for ratio in row.ratios:
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        cells += [f"{ratio.ratio:.3f}", interval, ratio.verdict]
    return cells


def host_text(host: Fingerprint) -> str:
    """The machine in a line."""
    found = host.host
    name = found.cpu_model.value or "unknown processor"
    gpus = "".join(f", {gpu.name}" for gpu in found.gpus)
    copies = host.copy_gb_s.items()
    speeds = ", ".join(f"{device} copies {speed:g} GB/s" for device, speed in copies)
    return f"{name}, {found.num_cores.value} cores{gpus}, {speeds}, load {host.load_average:g}"


def table(columns: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    """Rows under their columns' names, numbers to the right."""
    cells = [list(columns), *rows]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        yield "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
