"""The section on batches: latency, throughput and what a GPU brings, against batch size."""

from collections.abc import Sequence

from fastdlrm.report.bench_general import measurement_table, notes_of
from fastdlrm.report.charts import MUTED, Axis, Chart, Series, line_chart
from fastdlrm.report.page import Block, Grid, Section
from fastdlrm.report.provenance import Group, Named, context, model_text
from fastdlrm.report.published import GPU_SPEED_UP, GPU_SPEED_UP_BATCHES, READ_OFF

MS = ",.6~g"


def batch_section(groups: Sequence[Group]) -> Section:
    """A group's charts, then its numbers."""
    blocks: list[Block] = []
    for group in groups:
        charts = [_latency(group), _throughput(group), *_speed_up(group)]
        blocks += [Grid(charts, least_px=480), measurement_table(group), *notes_of(group)]
    return Section("Latency and throughput against batch size", blocks)


def _latency(group: Group) -> Chart:
    series = []
    for one in group:
        found, sizes = one.result.measurements, _sizes(one)
        series.append(
            Series(
                name=_name(group, one, "median"),
                places=sizes,
                values=[m.summary.median for m in found],
                low=[m.summary.low for m in found],
                high=[m.summary.high for m in found],
                color=one.color,
                mark="both",
            )
        )
        if any(m.summary.p99 is not None for m in found):
            series.append(
                Series(
                    name=_name(group, one, "p99"),
                    places=sizes,
                    values=[m.summary.p99 for m in found],
                    color=one.color,
                    is_dashed=True,
                )
            )
    return line_chart(
        f"Latency, {model_text(group[0].result)}",
        series,
        _batch_axis(group),
        Axis(title="latency of a batch, ms", is_log=True, format=MS),
        note=f"{context(group)} The band is the median's interval, 95 %.",
    )


def _throughput(group: Group) -> Chart:
    series = [
        Series(
            name=one.name,
            places=_sizes(one),
            values=[m.samples_per_s for m in one.result.measurements],
            color=one.color,
            mark="both",
        )
        for one in group
    ]
    return line_chart(
        f"Throughput, {model_text(group[0].result)}",
        series,
        _batch_axis(group),
        Axis(title="samples/s", is_log=True, format=",.3~s"),
        note=context(group),
    )


def _speed_up(group: Group) -> list[Chart]:
    """What each GPU brings over the first CPU, where both were measured."""
    cpu = next((one for one in group if one.result.device == "cpu"), None)
    gpus = [one for one in group if one.result.device == "cuda"]
    if cpu is None or not gpus:
        return []
    base = dict(zip(_sizes(cpu), _medians(cpu), strict=True))
    series = []
    for gpu in gpus:
        both = [(b, ms) for b, ms in zip(_sizes(gpu), _medians(gpu), strict=True) if b in base]
        series.append(
            Series(
                name=gpu.name,
                places=[b for b, _ in both],
                values=[base[b] / ms for b, ms in both],
                color=gpu.color,
                mark="both",
            )
        )
    if (published := GPU_SPEED_UP.get(group[0].result.model)) is not None:
        series.append(
            Series(
                name=f"GTX 1080 Ti over Skylake, arXiv:2001.02772, {READ_OFF}",
                places=GPU_SPEED_UP_BATCHES,
                values=published,
                color=MUTED,
                is_dashed=True,
                mark="both",
            )
        )
    chart = line_chart(
        f"Speed-up of a GPU, {model_text(group[0].result)}",
        series,
        _batch_axis(group),
        Axis(title="latency on the CPU / on the GPU", is_log=True, format=MS),
        note=f"{context(group)} The CPU: {cpu.name}.",
    )
    return [chart]


def _name(group: Group, one: Named, what: str) -> str:
    return f"{one.name}, {what}" if len(group) > 1 else what


def _sizes(one: Named) -> list[int]:
    return [int(m.key["batch_size"]) for m in one.result.measurements]


def _medians(one: Named) -> list[float]:
    return [m.summary.median for m in one.result.measurements]


def _batch_axis(group: Group) -> Axis:
    ticks = sorted({size for one in group for size in _sizes(one)})
    return Axis(title="batch size, samples", is_log=True, format=",d", ticks=ticks)
