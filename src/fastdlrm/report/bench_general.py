"""The section of a benchmark that has no charts of its own, and the table that most have."""

from collections.abc import Sequence

from fastdlrm.contracts.bench_result import Measurement
from fastdlrm.report.page import Block, Cell, Notes, Number, Paragraph, Section, Table
from fastdlrm.report.provenance import Group, context, notes


def general_section(title: str, groups: Sequence[Group]) -> Section:
    """Each group's measurements."""
    blocks: list[Block] = []
    for group in groups:
        blocks += [Paragraph(context(group)), measurement_table(group), *notes_of(group)]
    return Section(title, blocks)


def notes_of(group: Group, more: Sequence[str] = ()) -> list[Block]:
    """What the results say of themselves, and more, if anything."""
    found = [*notes(group), *more]
    return [Notes(found)] if found else []


def measurement_table(group: Group) -> Table:
    """A row a measurement: what sets it apart, what its samples say."""
    found = [(one.name, m) for one in group for m in one.result.measurements]
    keys = list(dict.fromkeys(name for _, m in found for name in m.key))
    units = {m.unit for _, m in found}
    unit = units.pop() if len(units) == 1 else ""
    first = [*(["result"] if len(group) > 1 else []), *keys, *([] if unit else ["unit"])]
    numbers = [f"{name} {unit}".strip() for name in ("median", "95 % from", "to", "p95", "p99")]
    rows = []
    for name, m in found:
        cells: list[Cell] = [name] if len(group) > 1 else []
        cells += [m.key.get(key, "") for key in keys]
        cells += [] if unit else [m.unit]
        rows.append([*cells, *_numbers(m), m.stopped])
    columns = [*first, *numbers, "samples/s", "measured", "stopped by"]
    text = [*range(len(first)), len(columns) - 1]
    return Table(columns=columns, rows=rows, text_columns=text)


def _numbers(found: Measurement) -> list[Cell]:
    summary = found.summary
    return [
        Number(summary.median),
        Number(summary.low),
        Number(summary.high),
        Number(summary.p95),
        Number(summary.p99),
        Number(found.samples_per_s, ",.0f"),
        Number(summary.num_samples, ",d"),
    ]
