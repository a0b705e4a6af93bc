"""The section on copies of a model on one machine: latency and throughput against their number."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastdlrm.contracts.bench_result import Measurement
from fastdlrm.report.bench_general import notes_of
from fastdlrm.report.charts import COLORS, MUTED, Axis, Chart, Series, dot_chart, line_chart
from fastdlrm.report.page import Block, Cell, Grid, Number, Section, Table
from fastdlrm.report.provenance import Group, context, model_text
from fastdlrm.report.published import COPIES_LATENCY, READ_OFF

MS = ",.6~g"
_FAR = 5.0
"""Times the slowest p99: an SLA beyond it is in the table alone, lest the chart be flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Copies of one model, more and more of them.

    Attributes:
        name: In legends.
        color: Of its series.
        points: By ascending number of copies.
        sla_ms: Of p99; None: none is stated.
    """

    name: str
    color: str
    points: Sequence[Measurement]
    sla_ms: float | None

    @property
    def copies(self) -> list[int]:
        """How many, at each point."""
        return [int(point.key["copies"]) for point in self.points]


def colocation_section(groups: Sequence[Group]) -> Section:
    """A group's charts, then its numbers."""
    blocks: list[Block] = []
    for group in groups:
        found = curves(group)
        charts = [_latency(group, found), _frontier(group, found), *_relative(group, found)]
        charts += _pairs(group)
        blocks += [Grid(charts, least_px=480), _table(group), _curve_table(group)]
        blocks += notes_of(group)
    return Section("Copies on one machine", blocks)


def curves(group: Group) -> list[Curve]:
    """Those of models among copies of themselves."""
    told = []
    for one in group:
        found = one.result.colocation
        for curve in found.curves if found else ():
            alone = {"model": curve.model, "with": curve.model, "tables": curve.tables}
            points = [m for m in one.result.measurements if alone.items() <= m.key.items()]
            points.sort(key=lambda point: int(point.key["copies"]))
            told.append((one.name, curve, points))
    is_one = len(group) == 1
    models = {curve.model for _, curve, _ in told}
    return [
        Curve(
            name=", ".join(
                filter(
                    None,
                    (
                        "" if is_one else name,
                        curve.model if len(models) > 1 else "",
                        f"{curve.tables} tables",
                    ),
                )
            ),
            color=COLORS[place % len(COLORS)],
            points=points,
            sla_ms=curve.sla_ms,
        )
        for place, (name, curve, points) in enumerate(told)
    ]


def _latency(group: Group, found: Sequence[Curve]) -> Chart:
    series = []
    for curve in found:
        summaries = [point.summary for point in curve.points]
        p50 = Series(
            name=f"{curve.name}, p50",
            places=curve.copies,
            values=[summary.median for summary in summaries],
            color=curve.color,
            mark="both",
        )
        p5 = replace(
            p50,
            name=f"{curve.name}, p5",
            values=[summary.p5 for summary in summaries],
            is_faint=True,
            mark="line",
        )
        p99 = replace(
            p50,
            name=f"{curve.name}, p99",
            values=[summary.p99 for summary in summaries],
            is_dashed=True,
            mark="line",
        )
        series += [p5, p50, p99]
    slowest = max(value or 0.0 for one in series for value in one.values)
    for sla_ms in sorted({curve.sla_ms for curve in found if curve.sla_ms is not None}):
        if sla_ms > _FAR * slowest:
            continue
        most = max(max(curve.copies) for curve in found)
        name, ends = f"SLA of p99, {sla_ms:g} ms", [sla_ms, sla_ms]
        series.append(Series(name=name, places=[1, most], values=ends, color=MUTED, is_dashed=True))
    return line_chart(
        f"Latency of copies, {model_text(group[0].result)}",
        series,
        _copies_axis(found),
        Axis(title="latency of a batch, ms", is_log=True, format=MS),
        note=f"{context(group)} Thin lines: p5.",
        height_px=400,
    )


def _frontier(group: Group, found: Sequence[Curve]) -> Chart:
    series = []
    for curve in found:
        known = [point for point in curve.points if point.summary.p99 is not None]
        series.append(
            Series(
                name=curve.name,
                places=[point.summary.p99 or 0.0 for point in known],
                values=[point.samples_per_s for point in known],
                color=curve.color,
                mark="both",
                labels=[point.key["copies"] for point in known],
            )
        )
    return line_chart(
        f"Throughput against latency, {model_text(group[0].result)}",
        series,
        Axis(title="p99 of a batch's latency, ms", is_log=True, format=MS),
        Axis(title="samples/s of all copies", format=",.3~s", starts_at_zero=True),
        note=f"{context(group)} Beside each point: copies.",
        height_px=400,
    )


def _relative(group: Group, found: Sequence[Curve]) -> list[Chart]:
    """Mean latency over that of one copy; the paper's beside it."""
    series = []
    for curve in found:
        means = [point.summary.mean for point in curve.points]
        if curve.copies[0] == 1 and means[0]:
            series.append(
                Series(
                    name=curve.name,
                    places=curve.copies,
                    values=[mean and mean / means[0] for mean in means],
                    color=curve.color,
                    mark="both",
                )
            )
    if not series:
        return []
    shown = max(10, 2 * max(max(one.places) for one in series))
    series += [
        Series(
            name=f"{machine}, arXiv:1906.03109, {READ_OFF}",
            places=[number for number in copies if number <= shown],
            values=[
                ms / published[0]
                for number, ms in zip(copies, published, strict=True)
                if number <= shown
            ],
            color=color,
            is_dashed=True,
            mark="both",
        )
        for color, (machine, (copies, published)) in zip(
            (MUTED, "--background"), COPIES_LATENCY.items(), strict=True
        )
    ]
    chart = line_chart(
        f"Latency over that of one copy, {model_text(group[0].result)}",
        series,
        Axis(title="copies at once", format=",d"),
        Axis(title="mean latency / mean latency of one", format=MS, starts_at_zero=True),
        note=f"{context(group)} Shapes are to be compared: the paper's machines have more cores.",
        height_px=400,
    )
    return [chart]


def _pairs(group: Group) -> list[Chart]:
    told = [
        (one, pair)
        for one in group
        if one.result.colocation
        for pair in one.result.colocation.pairs
    ]
    if not told:
        return []
    prefixes = [f"{one.name}: " if len(group) > 1 else "" for one, _ in told]
    rows = [
        f"{prefix}{pair.model} with {pair.partner}, {pair.tables}, {pair.copies}"
        for prefix, (_, pair) in zip(prefixes, told, strict=True)
    ]
    series = Series(
        name="ratio",
        values=[pair.ratio for _, pair in told],
        low=[pair.low for _, pair in told],
        high=[pair.high for _, pair in told],
    )
    ratio = Axis(title="median latency / that among as many copies of itself", format=".3~f")
    note = (
        f"{context(group)} Beside the names: tables, and copies of both together. With 95 % "
        "intervals; above 1 it is slower in this company."
    )
    return [dot_chart("Latency among copies of another model", rows, [series], ratio, note=note)]


def _copies_axis(found: Sequence[Curve]) -> Axis:
    ticks = sorted({copies for curve in found for copies in curve.copies})
    return Axis(title="copies at once", format=",d", ticks=ticks)


def _table(group: Group) -> Table:
    first = ["result"] if len(group) > 1 else []
    columns = [*first, "model", "with", "tables", "copies", "batch size", "mean, ms", "p5", "p50"]
    columns += ["p95", "p99", "samples/s of all"]
    rows = []
    for one in group:
        for m in one.result.measurements:
            cells: list[Cell] = [one.name] if first else []
            cells += [m.key["model"], m.key["with"], m.key["tables"]]
            cells += [m.key["copies"], m.key["batch_size"]]
            s = m.summary
            cells += [Number(x) for x in (s.mean, s.p5, s.median, s.p95, s.p99)]
            rows.append([*cells, Number(m.samples_per_s, ",.0f")])
    return Table(columns=columns, rows=rows, text_columns=range(len(first) + 3))


def _curve_table(group: Group) -> Table:
    """Where the curves bend, and how many copies keep the SLA."""
    first = ["result"] if len(group) > 1 else []
    columns = [
        *first,
        "copies of",
        "tables",
        "knee at",
        "why",
        "SLA of p99, ms",
        "copies that keep it",
    ]
    rows: list[list[Cell]] = [
        [
            *([one.name] if first else []),
            curve.model,
            curve.tables,
            Number(curve.knee, "d"),
            curve.reason or "none as far as measured",
            Number(curve.sla_ms, "g"),
            Number(curve.copies_at_sla, "d"),
        ]
        for one in group
        if one.result.colocation
        for curve in one.result.colocation.curves
    ]
    text = [*range(len(first) + 2), len(first) + 3]
    return Table(columns=columns, rows=rows, text_columns=text)
