"""The section on predictions: calibration curve and ROC of runs' evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdlrm.metrics.values import SCALARS, MetricValues
from fastdlrm.report.charts import COLORS, MUTED, Axis, Chart, Series, line_chart
from fastdlrm.report.dataset_rows import interval
from fastdlrm.report.page import Block, Cell, Fold, Grid, Number, Section, Table
from fastdlrm.report.provenance import commit_text
from fastdlrm.report.run_training import METRIC_FORMAT
from fastdlrm.report.sources import Sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Metrics and what they are of.

    Attributes:
        name: In legends and tables.
        context: Machine and commit.
        color: Of its series.
        values: What was found.
    """

    name: str
    context: str
    color: str
    values: MetricValues


def quality_section(sources: Sources) -> Section:
    """Curves, metrics and the bins of the calibration curve."""
    found = _evaluated(sources)
    if not found:
        return Section("Predictions", [])
    blocks: list[Block] = [
        Grid([_calibration(found), *_roc(found)], least_px=480),
        _metric_table(found),
        Fold("Bins of the calibration curve", _bin_table(found)),
    ]
    return Section("Predictions", blocks)


def _evaluated(sources: Sources) -> list[Evaluated]:
    """Each run's best evaluation on validation, then what `fastdlrm eval` found."""
    told = [
        (
            f"{run.path}, validation, step {run.best.step}",
            run.manifest.machine,
            run.manifest.commit,
            run.best.values,
        )
        for run in sources.runs
        if run.best is not None
    ]
    told += [
        (f"{one.run}, {one.split}, step {one.step}", one.machine, one.commit, one.values)
        for one in sources.evaluations
    ]
    return [
        Evaluated(
            name=name,
            context=f"{machine or 'machine not recorded'}, {commit_text(commit)}",
            color=COLORS[place % len(COLORS)],
            values=values,
        )
        for place, (name, machine, commit, values) in enumerate(told)
    ]


def _context(found: Sequence[Evaluated]) -> str:
    return f"{'; '.join(f'{one.name}: {one.context}' for one in found)}."


def _calibration(found: Sequence[Evaluated]) -> Chart:
    series = []
    for one in found:
        bins = one.values.reliability
        bounds = [interval(round(b.mean_label * b.num_samples), b.num_samples) for b in bins]
        series.append(
            Series(
                name=one.name,
                places=[b.mean_prediction for b in bins],
                values=[b.mean_label for b in bins],
                low=[low for low, _ in bounds],
                high=[high for _, high in bounds],
                color=one.color,
                mark="both",
            )
        )
    points = [b for one in found for b in one.values.reliability]
    last = max(max(b.mean_prediction, b.mean_label) for b in points)
    diagonal = Series(
        name="calibrated", places=[0.0, last], values=[0.0, last], color=MUTED, is_dashed=True
    )
    return line_chart(
        "Calibration curve",
        [*series, diagonal],
        Axis(title="mean predicted probability of a bin", format=".1~%", starts_at_zero=True),
        Axis(title="share of positives of the bin", format=".1~%", starts_at_zero=True),
        note=f"{_context(found)} Bins of about equally many rows, with 95 % intervals (Wilson).",
        height_px=400,
    )


def _roc(found: Sequence[Evaluated]) -> list[Chart]:
    series = [
        Series(
            name=f"{one.name}: AUC {one.values.auc:.4f}",
            places=one.values.roc.false_positive_rates,
            values=one.values.roc.true_positive_rates,
            color=one.color,
        )
        for one in found
        if one.values.roc is not None
    ]
    if not series:
        return []
    chance = Series(name="chance", places=[0, 1], values=[0, 1], color=MUTED, is_dashed=True)
    chart = line_chart(
        "ROC curve",
        [*series, chance],
        Axis(title="false positive rate", format=".0%", bounds=(0, 1)),
        Axis(title="true positive rate", format=".0%", bounds=(0, 1)),
        note=f"{_context(found)} Points of the whole curve, joined by straight lines.",
        height_px=400,
    )
    return [chart]


def _metric_table(found: Sequence[Evaluated]) -> Table:
    rows: list[list[Cell]] = [
        [
            one.name,
            *(Number(getattr(one.values, metric), METRIC_FORMAT) for metric in SCALARS),
            Number(one.values.num_samples, ",d"),
            Number(one.values.num_positives, ",d"),
        ]
        for one in found
    ]
    return Table(columns=("evaluated", *SCALARS, "rows", "positives"), rows=rows)


def _bin_table(found: Sequence[Evaluated]) -> Table:
    rows: list[list[Cell]] = [
        [
            one.name,
            Number(b.num_samples, ",d"),
            Number(b.mean_prediction, METRIC_FORMAT),
            Number(b.mean_label, METRIC_FORMAT),
        ]
        for one in found
        for b in one.values.reliability
    ]
    columns = ("evaluated", "rows", "mean prediction", "share of positives")
    return Table(columns=columns, rows=rows)
