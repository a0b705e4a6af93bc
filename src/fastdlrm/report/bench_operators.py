"""The section on operators: shares of the time by operator class, against batch size."""

from collections.abc import Iterable, Sequence

from fastdlrm.contracts.bench_result import Measurement
from fastdlrm.report.bench_general import notes_of
from fastdlrm.report.charts import COLORS, Axis, Chart, Series, bar_chart
from fastdlrm.report.page import Block, Cell, Grid, Number, Section, Share, Table
from fastdlrm.report.provenance import Group, context, model_text

WHOLE = "step"
COLOR_OF = {
    "fc": COLORS[0],
    "embedding_bag": COLORS[2],
    "interaction": COLORS[1],
    "other": COLORS[5],
}
"""Of operator classes, from the bottom of a bar up."""

Step = dict[str, Measurement]
Key = tuple[str, str]


def operator_section(groups: Sequence[Group]) -> Section:
    """A group's chart of each pass, then its numbers."""
    blocks: list[Block] = []
    for group in groups:
        passes = dict.fromkeys(kind for one in group for kind, _ in steps(one.result.measurements))
        charts = [_chart(group, kind) for kind in passes]
        blocks += [Grid(charts, least_px=480), _table(group), *notes_of(group, _reasons(group))]
    return Section("Where the time goes", blocks)


def steps(measurements: Sequence[Measurement]) -> dict[Key, Step]:
    """Measurements by operator, of each pass and batch size."""
    found: dict[Key, Step] = {}
    for one in measurements:
        key = one.key["pass"], one.key["batch_size"]
        found.setdefault(key, {})[one.key["operator"]] = one
    return found


def shares(step: Step, names: Sequence[str]) -> list[float]:
    """Of the profiled time, by operator class; 0 of one that the step does not have."""
    times = [step[name].summary.median if name in step else 0.0 for name in names]
    return [time / sum(times) if sum(times) else 0.0 for time in times]


def intensity(found: Measurement) -> float:
    """FLOPs a byte; 0 where no byte is moved."""
    return (found.flop or 0.0) / found.num_bytes if found.num_bytes else 0.0


def counters(step: Step) -> tuple[dict[str, float], list[str]]:
    """What hardware counters said of a step, and why those that said nothing did not."""
    facts = step[WHOLE].counters
    values = {name: float(fact.value) for name, fact in facts.items() if fact.value is not None}
    reasons = dict.fromkeys(fact.reason for fact in facts.values() if fact.value is None)
    return values, list(reasons)


def _classes(found: Iterable[Step]) -> list[str]:
    """Operator classes, those of `COLOR_OF` first."""
    names = dict.fromkeys(name for step in found for name in step if name != WHOLE)
    return [*(n for n in COLOR_OF if n in names), *(n for n in names if n not in COLOR_OF)]


def _chart(group: Group, kind: str) -> Chart:
    letters = [chr(ord("A") + place) for place in range(len(group))]
    bars = [
        (size, letter, step)
        for letter, one in zip(letters, group, strict=True)
        for (of, size), step in steps(one.result.measurements).items()
        if of == kind
    ]
    bars.sort(key=lambda bar: int(bar[0]))  # the machines of one batch size stand together
    names = _classes(step for _, _, step in bars)
    values = [shares(step, names) for _, _, step in bars]
    series = [
        Series(
            name=name,
            values=[value[place] for value in values],
            color=COLOR_OF.get(name, COLORS[place % len(COLORS)]),
        )
        for place, name in enumerate(names)
    ]
    return bar_chart(
        f"Time by operator, {kind}, {model_text(group[0].result)}",
        [size for size, _, _ in bars],
        series,
        "batch size, samples",
        Axis(title="share of the profiled time", format=".0%", bounds=(0, 1)),
        members=[letter for _, letter, _ in bars] if len(group) > 1 else (),
        note=f"{context(group)}{_legend(letters, group)}",
    )


def _legend(letters: Sequence[str], group: Group) -> str:
    told = (f"{letter}: {one.name}" for letter, one in zip(letters, group, strict=True))
    return f" {'; '.join(told)}." if len(group) > 1 else ""


def _table(group: Group) -> Table:
    found = [
        (one.name, key, s) for one in group for key, s in steps(one.result.measurements).items()
    ]
    names = _classes(step for _, _, step in found)
    counted = [n for n in names if any(n in step and step[n].num_bytes for _, _, step in found)]
    events = list(dict.fromkeys(event for _, _, step in found for event in counters(step)[0]))
    first = ["result"] if len(group) > 1 else []
    columns = [*first, "pass", "batch size", "step, ms", *names]
    columns += [f"{name}, FLOP/byte" for name in counted] + ["GFLOP/s", "GB/s", *events]
    rows = []
    for name, key, step in found:
        whole = step[WHOLE]
        nanoseconds = whole.summary.median * 1e6
        rate = (amount and amount / nanoseconds for amount in (whole.flop, whole.num_bytes))
        values = counters(step)[0]
        cells: list[Cell] = [*([name] if first else []), *key, Number(whole.summary.median)]
        cells += map(Share, shares(step, names))
        cells += (Number(intensity(step[n]) if n in step else None, ".3g") for n in counted)
        cells += map(Number, rate)
        cells += (Number(values.get(event)) for event in events)
        rows.append(cells)
    return Table(columns=columns, rows=rows, text_columns=range(len(first) + 1))


def _reasons(group: Group) -> list[str]:
    """Why there are no hardware counters, where there are none."""
    found = (
        r for one in group for s in steps(one.result.measurements).values() for r in counters(s)[1]
    )
    return [f"no hardware counters: {reason}" for reason in dict.fromkeys(found)]
