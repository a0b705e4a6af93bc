"""The section on rooflines: operators under the ceilings of their machine."""

from collections.abc import Sequence

from fastdlrm.contracts.roofline import Ceilings, Placed, PlacedStep
from fastdlrm.report.bench_general import notes_of
from fastdlrm.report.bench_operators import COLOR_OF
from fastdlrm.report.charts import COLORS, INK, MUTED, Axis, Chart, Series, line_chart
from fastdlrm.report.page import Block, Cell, Grid, Notes, Number, Section, Share, Table
from fastdlrm.report.provenance import Group, Named, context, model_text

_MARGIN = 3.0
"""Of the chart's intensities beyond the operators'."""


def roofline_section(groups: Sequence[Group]) -> Section:
    """A chart a machine and pass, then ceilings, operators and advice."""
    blocks: list[Block] = []
    for group in groups:
        charts = [
            _chart(one, kind, steps, group)
            for one in group
            for kind, steps in _by_pass(one).items()
        ]
        blocks += [Grid(charts, least_px=480), _ceiling_table(group), _placed_table(group)]
        blocks += [Notes(_advice(group)), *notes_of(group)]
    return Section("Under the ceilings of the machine", blocks)


def _by_pass(one: Named) -> dict[str, list[PlacedStep]]:
    found: dict[str, list[PlacedStep]] = {}
    for step in one.result.roofline.steps if one.result.roofline else ():
        found.setdefault(step.kind, []).append(step)
    return found


def _is_counted(placed: Placed) -> bool:
    return placed.flop > 0 and placed.num_bytes > 0 and placed.ms > 0


def _chart(one: Named, kind: str, steps: Sequence[PlacedStep], group: Group) -> Chart:
    assert one.result.roofline is not None
    points: dict[str, list[tuple[int, Placed]]] = {}
    for step in steps:
        for placed in (step.step, *step.operators):
            if _is_counted(placed):
                points.setdefault(placed.operator, []).append((step.batch_size, placed))
    series = [
        Series(
            name="whole step" if name == "step" else name,
            places=[placed.intensity for _, placed in found],
            values=[placed.flop / placed.ms / 1e6 for _, placed in found],
            color=COLOR_OF.get(name, COLORS[3]),
            mark="points",
            labels=[f"{size:,}" for size, _ in found],
        )
        for name, found in points.items()
    ]
    intensities = [place for each in series for place in each.places]
    precision = str(one.result.config.get("train", {}).get("precision"))
    ceilings = _ceilings(one.result.roofline.ceilings, precision, intensities)
    prefix = f"{one.name}, " if len(group) > 1 else ""
    return line_chart(
        f"Roofline, {prefix}{kind}, {model_text(one.result)}",
        [*ceilings, *series],
        Axis(title="FLOPs a byte", is_log=True, format=",.6~g"),
        Axis(title="GFLOP/s", is_log=True, format=",.6~g"),
        note=f"{context([one])} Beside each point: batch size. Bytes are counted from the shapes.",
        height_px=460,
    )


def _ceilings(found: Ceilings, precision: str, intensities: Sequence[float]) -> list[Series]:
    """Slopes of memory up to the fastest products, and a level for each type of product.

    The level of the model's own precision is solid, the others are dashed.
    """
    top = max(found.gflop_s.values())
    ridge = top / found.memory_gb_s
    first = min([*intensities, ridge]) / _MARGIN
    last = max([*intensities, ridge]) * _MARGIN
    slopes = [("memory in order", found.memory_gb_s, INK, False)]
    if found.gather_gb_s is not None:
        slopes.append(("rows gathered", found.gather_gb_s, COLOR_OF["embedding_bag"], True))
    series = [
        Series(
            name=f"{name}, {rate:.3g} GB/s",
            places=[first, top / rate],
            values=[first * rate, top],
            color=color,
            is_dashed=is_dashed,
        )
        for name, rate, color, is_dashed in slopes
    ]
    for name, level in sorted(found.gflop_s.items(), key=lambda item: -item[1]):
        series.append(
            Series(
                name=f"{name} products, {level:,.0f} GFLOP/s",
                places=[level / found.memory_gb_s, last],
                values=[level, level],
                color=INK if name == precision else MUTED,
                is_dashed=name != precision,
            )
        )
    return series


def _ceiling_table(group: Group) -> Table:
    rows: list[list[Cell]] = []
    for one in group:
        assert one.result.roofline is not None
        found = one.result.roofline.ceilings
        rates: dict[str, float | None] = {
            f"{size >> 20:,} MiB in order": rate for size, rate in sorted(found.stream_gb_s.items())
        }
        rates |= {
            "rows gathered": found.gather_gb_s,
            "host to device": found.host_to_device_gb_s,
            "device to host": found.device_to_host_gb_s,
            "all-to-all": found.all_to_all_gb_s,
        }
        rows += [
            [one.name, name, Number(rate), "GB/s"]
            for name, rate in rates.items()
            if rate is not None
        ]
        rows += [
            [one.name, f"{name} products", Number(rate), "GFLOP/s"]
            for name, rate in found.gflop_s.items()
        ]
    columns = ("machine", "ceiling", "measured", "unit")
    return Table(columns=columns, rows=rows, text_columns=(0, 1, 3))


def _placed_table(group: Group) -> Table:
    first = ["result"] if len(group) > 1 else []
    columns = [*first, "pass", "batch size", "operator", "ms", "FLOP/byte", "GFLOP/s", "GB/s"]
    columns += ["bound by", "floor, ms", "of the ceiling", "fixed, ms"]
    rows = [
        [
            *([one.name] if first else []),
            step.kind,
            Number(step.batch_size, ",d"),
            *_placed_cells(placed),
        ]
        for one in group
        for step in (one.result.roofline.steps if one.result.roofline else ())
        for placed in (step.step, *step.operators)
    ]
    start = len(first)
    return Table(columns=columns, rows=rows, text_columns=[*range(start + 1), start + 2, start + 7])


def _placed_cells(placed: Placed) -> list[Cell]:
    is_moved = placed.num_bytes > 0 and placed.ms > 0
    gflop_s, gb_s = (
        x / placed.ms / 1e6 if is_moved else None for x in (placed.flop, placed.num_bytes)
    )
    return [
        placed.operator,
        Number(placed.ms),
        Number(placed.intensity if is_moved else None, ".3g"),
        Number(gflop_s),
        Number(gb_s),
        placed.bound,
        Number(placed.floor_ms, ".3g"),
        Share(placed.share if is_moved else None),
        Number(placed.fixed_ms, ".3g"),
    ]


def _advice(group: Group) -> list[str]:
    return [
        f"{f'{one.name}: ' if len(group) > 1 else ''}{step.kind} of {step.batch_size:,}: "
        f"{step.advice.sentence}"
        for one in group
        for step in (one.result.roofline.steps if one.result.roofline else ())
    ]
