"""The section on latency-bounded throughput: rates within an SLA, against B and against the SLA.

B is the most samples of a part into which the server cuts a query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from fastdlrm.contracts.latency_bounded import LatencyBounded, Rung
from fastdlrm.report.bench_general import notes_of
from fastdlrm.report.charts import COLORS, MUTED, Axis, Chart, Series, dot_chart, line_chart
from fastdlrm.report.page import Block, Cell, Grid, Number, Section, Share, Table
from fastdlrm.report.provenance import Group, Named, context, machine, model_text
from fastdlrm.report.published import READ_OFF, TUNED_TO_STATIC

RATE = ",.6~g"


def latency_bounded_section(groups: Sequence[Group]) -> Section:
    """A group's charts, then its numbers."""
    blocks: list[Block] = []
    for group in groups:
        charts = [_against_b(group), *_against_sla(group), *_gain(group)]
        blocks += [Grid(charts, least_px=480), _table(group), *notes_of(group)]
    return Section("Throughput within an SLA", blocks)


def _studies(group: Group) -> Iterator[tuple[Named, LatencyBounded]]:
    for one in group:
        if one.result.latency_bounded is not None:
            yield one, one.result.latency_bounded


def _sla_text(found: LatencyBounded) -> str:
    return f"p{found.percentile:g} within {found.sla_ms:g} ms"


def _names(group: Group) -> list[str]:
    """Of studies in legends: by their SLA, where that tells them apart."""
    studies = list(_studies(group))
    told = [_sla_text(found) for _, found in studies]
    machines = {machine(one.result) for one, _ in studies}
    if len(machines) == 1 and len(set(told)) == len(told):
        return told
    return [f"{one.name}, {text}" for (one, _), text in zip(studies, told, strict=True)]


def _terms(group: Group) -> str:
    """What the rates are of, besides machine and model."""
    told = dict.fromkeys(
        f"{_sla_text(found)}, sizes {found.sizes}, {found.workers} workers"
        + (", the reference's way" if found.mode == "reference" else "")
        for _, found in _studies(group)
    )
    is_doubtful = any(rung.invalid for _, found in _studies(group) for rung in found.rungs)
    doubt = " Rates that are marked invalid may not be the server's." if is_doubtful else ""
    return f"{'; '.join(told)}.{doubt}"


def _against_b(group: Group) -> Chart:
    series = []
    names = _names(group)
    for name, (one, found) in zip(names, _studies(group), strict=True):
        rungs = found.rungs
        sizes = [rung.rows for rung in rungs]
        series.append(
            Series(
                name=name,
                places=sizes,
                values=[median(rung.rates) for rung in rungs],
                low=[min(rung.rates) for rung in rungs],
                high=[max(rung.rates) for rung in rungs],
                color=one.color,
                mark="both",
                labels=[_mark(rung, found) for rung in rungs],
            )
        )
        if len(group) == 1:
            ceilings = [rung.ceiling_qps for rung in rungs]
            series.append(
                Series(
                    name="if workers only computed",
                    places=sizes,
                    values=ceilings,
                    color=MUTED,
                    is_dashed=True,
                )
            )
    ticks = sorted({rung.rows for _, found in _studies(group) for rung in found.rungs})
    return line_chart(
        f"Rate within the SLA against B, {model_text(group[0].result)}",
        series,
        Axis(title="B, samples of a part at most", is_log=True, format=",d", ticks=ticks),
        Axis(title="queries/s", format=RATE, starts_at_zero=True),
        note=f"{context(group)} {_terms(group)} The median of the seeds, least and most as a band.",
        height_px=400,
    )


def _mark(rung: Rung, found: LatencyBounded) -> str:
    at, marks = rung.rows, {"tuned": found.tuned, "static": found.static}
    told = []
    if found.offload is not None and rung.offload_min_rows:
        at, marks = rung.offload_min_rows, {"tuned": found.offload.tuned}
        told = [f"queries from {at} samples on go to {found.offload.device}"]
    told += [name for name, where in marks.items() if where == at]
    return ", ".join([*told, *(["invalid"] if rung.invalid else [])])


def _rate(found: LatencyBounded, rows: int) -> float | None:
    return next((median(rung.rates) for rung in found.rungs if rung.rows == rows), None)


def _against_sla(group: Group) -> list[Chart]:
    """Studies that differ in the SLA alone make a line."""
    lines: dict[str, list[LatencyBounded]] = {}
    for one, found in _studies(group):
        name = f"{machine(one.result)}, p{found.percentile:g}, sizes {found.sizes}, "
        lines.setdefault(f"{name}{found.workers} workers, {found.mode}", []).append(found)
    series = []
    for place, (name, studies) in enumerate(lines.items()):
        ordered = sorted(studies, key=lambda found: found.sla_ms)
        color, places = COLORS[place % len(COLORS)], [found.sla_ms for found in ordered]
        if len(set(places)) > 1:
            tuned = [_rate(found, found.tuned) for found in ordered]
            static = [_rate(found, found.static) for found in ordered]
            prefix = f"{name}, " if len(lines) > 1 else ""
            best = Series(
                name=f"{prefix}tuned B", places=places, values=tuned, color=color, mark="both"
            )
            plain = replace(best, name=f"{prefix}static B", values=static, is_dashed=True)
            series += [best, plain]
    if not series:
        return []
    ticks = sorted({found.sla_ms for _, found in _studies(group)})
    chart = line_chart(
        f"Rate against the SLA, {model_text(group[0].result)}",
        series,
        Axis(title="SLA, ms", is_log=True, format=RATE, ticks=ticks),
        Axis(title="queries/s", format=RATE, starts_at_zero=True),
        note=f"{context(group)} {_terms(group)}",
        height_px=400,
    )
    return [chart]


def _gain(group: Group) -> list[Chart]:
    """The tuned B over the static one; the paper's beside it."""
    studies = zip(_names(group), _studies(group), strict=True)
    ours = [(name, f.tuned_to_static) for name, (_, f) in studies if f.tuned_to_static is not None]
    if not ours:
        return []
    published = TUNED_TO_STATIC.get(group[0].result.model, {})
    series = [
        Series(
            name="tuned B over static B",
            values=[*(ratio for _, ratio in ours), *(None for _ in published)],
        )
    ]
    if published:
        series.append(
            Series(
                name=f"DeepRecSched on CPUs, arXiv:2001.02772, {READ_OFF}",
                values=[*(None for _ in ours), *published.values()],
                color=MUTED,
            )
        )
    chart = dot_chart(
        f"What tuning B brings, {model_text(group[0].result)}",
        [*(name for name, _ in ours), *(f"{level} SLA of the paper" for level in published)],
        series,
        Axis(title="rate of the tuned B / of the static B", format=".3~f", starts_at_zero=True),
        note=f"{context(group)} {_terms(group)}",
    )
    return [chart]


def _table(group: Group) -> Table:
    first = ["result"] if len(group) > 1 else []
    columns = [*first, "SLA", "B", "queries/s", "least", "most", "samples/s", "of the ceiling"]
    columns.append("mark")
    rows = []
    for one, found in _studies(group):
        offloaded = found.offload.rungs if found.offload is not None else ()
        for rung in (*found.rungs, *offloaded):
            rate = median(rung.rates)
            cells: list[Cell] = [one.name] if first else []
            cells += [_sla_text(found), Number(rung.rows, "d")]
            cells += [Number(x, ",.1f") for x in (rate, min(rung.rates), max(rung.rates))]
            cells += [Number(rung.samples_per_s, ",.0f"), Share(rate / rung.ceiling_qps)]
            rows.append([*cells, _mark(rung, found)])
    text = [*range(len(first) + 1), len(columns) - 1]
    return Table(columns=columns, rows=rows, text_columns=text)
