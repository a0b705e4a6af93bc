"""The section on training: loss and AUC against samples."""

from collections.abc import Sequence
from statistics import median

from fastdlrm.metrics.values import SCALARS
from fastdlrm.report.charts import COLORS, Axis, Chart, Series, line_chart
from fastdlrm.report.page import Block, Cell, Fold, Grid, Number, Section, Table
from fastdlrm.report.provenance import commit_text
from fastdlrm.report.sources import TrainingRun

METRIC_FORMAT = ".5f"
_SAMPLES = Axis(title="samples trained on (steps x global batch size)", format=",.3~s")


def training_section(runs: Sequence[TrainingRun]) -> Section:
    """Curves, the runs' ends, and every evaluation."""
    blocks: list[Block] = [
        Grid([_loss(runs), *_auc(runs)], least_px=480),
        _run_table(runs),
        *([Fold("Every evaluation", _evaluation_table(runs))] if _any_validation(runs) else []),
    ]
    return Section("Training", blocks)


def run_context(runs: Sequence[TrainingRun]) -> str:
    """What stands under each chart of runs: model, machine, commit."""
    told = []
    for run in runs:
        model = run.manifest.config["model"]
        layers = "-".join(map(str, model["top_mlp"]))
        told.append(
            f"{run.path}: D {model['embedding_dim']}, top MLP {layers}, "
            f"{len(run.manifest.schema.sparse)} sparse features, rows as in the data, "
            f"{run.manifest.machine or 'machine not recorded'}, "
            f"{commit_text(run.manifest.commit)}"
        )
    return f"{'; '.join(told)}."


def _any_validation(runs: Sequence[TrainingRun]) -> bool:
    return any(run.validations for run in runs)


def _loss(runs: Sequence[TrainingRun]) -> Chart:
    series = []
    for place, run in enumerate(runs):
        prefix = f"{run.path}, " if len(runs) > 1 else ""
        color = COLORS[place % len(COLORS)]
        series.append(
            Series(
                name=f"{prefix}train",
                places=[run.num_samples(record.step) for record in run.records],
                values=[record.values["loss"] for record in run.records],
                color=color,
                is_faint=len(runs) > 1,
            )
        )
        if run.validations:
            series.append(
                Series(
                    name=f"{prefix}validation",
                    places=[one.num_samples for one in run.validations],
                    values=[one.values.log_loss for one in run.validations],
                    color=color if len(runs) > 1 else COLORS[2],
                    mark="both",
                )
            )
    losses = {run.train["loss"] for run in runs}
    title = "log loss, nats"
    if losses != {"bce"}:
        title = f"train: {', '.join(sorted(losses))}; validation: {title}"
    faint = " Thin lines: training." if len(runs) > 1 else ""
    return line_chart(
        "Loss against samples",
        series,
        _SAMPLES,
        Axis(title=title, format=".3~g"),
        note=f"{run_context(runs)} Training loss is the mean since the record before.{faint}",
    )


def _auc(runs: Sequence[TrainingRun]) -> list[Chart]:
    series = [
        Series(
            name=str(run.path),
            places=[one.num_samples for one in run.validations],
            values=[one.values.auc for one in run.validations],
            color=COLORS[place % len(COLORS)] if len(runs) > 1 else COLORS[2],
            mark="both",
        )
        for place, run in enumerate(runs)
        if run.validations
    ]
    if not series:
        return []
    auc = Axis(title="AUC on validation", format=".4~f")
    return [line_chart("AUC against samples", series, _SAMPLES, auc, note=run_context(runs))]


def _run_table(runs: Sequence[TrainingRun]) -> Table:
    rows = []
    for run in runs:
        last = max([r.step for r in run.records] + [one.step for one in run.validations])
        speeds = [r.timing["samples_per_s"] for r in run.records if "samples_per_s" in r.timing]
        best = run.best
        cells: list[Cell] = [
            str(run.path),
            run.manifest.machine,
            Number(last, ",d"),
            Number(run.num_samples(last), ",d"),
            Number(median(speeds) if speeds else None, ",.0f"),
            Number(best.step if best else None, ",d"),
        ]
        found = best.values.scalars() if best else {}
        cells += [Number(found.get(metric), METRIC_FORMAT) for metric in SCALARS]
        rows.append(cells)
    columns = ("run", "started on", "steps", "samples", "samples/s, median", "best step", *SCALARS)
    return Table(columns=columns, rows=rows, text_columns=(0, 1))


def _evaluation_table(runs: Sequence[TrainingRun]) -> Table:
    rows: list[list[Cell]] = [
        [
            str(run.path),
            Number(one.step, ",d"),
            Number(one.num_samples, ",d"),
            *(Number(getattr(one.values, metric), METRIC_FORMAT) for metric in SCALARS),
        ]
        for run in runs
        for one in run.validations
    ]
    return Table(columns=("run", "step", "samples", *SCALARS), rows=rows)
