"""The section of a study: values by trial, curves, parameters, the table of trials."""

from collections.abc import Sequence
from statistics import median

from fastdlrm.contracts.study import Range, TrialRecord, value_text
from fastdlrm.report.charts import COLORS, MUTED, Axis, Chart, Series, dot_chart, line_chart
from fastdlrm.report.page import Block, Cell, Fold, Grid, Notes, Number, Section, Table
from fastdlrm.report.provenance import commit_text
from fastdlrm.report.sources import Study

_FORMAT = ".5f"
_TICKS = 12
"""Evaluations that are written one by one."""
_COMPLETE, _PRUNED, _BEST = COLORS[0], MUTED, COLORS[2]


def tuning_section(study: Study) -> Section:
    """What a study tried, and what came of it."""
    result = study.result
    told = [trial for trial in result.trials if trial.value is not None]
    blocks: list[Block] = [Notes(_notes(study))]
    if told:
        blocks.append(Grid([_history(study, told), _curves(study, told)], least_px=480))
        slices = [_slice(study, told, name) for name in result.settings.space.parameters]
        blocks.append(Grid([*_importance(study), *slices]))
    blocks.append(Fold("Trials, best first", _trial_table(study), is_open=True))
    return Section(f"Study {study.path}", blocks)


def _notes(study: Study) -> list[str]:
    result, settings = study.result, study.result.settings
    states = [trial.state for trial in result.trials]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    aim = "higher" if settings.is_higher_better else "lower"
    notes = [
        f"{len(states)} trials: {', '.join(f'{n} {state}' for state, n in counts.items())}",
        f"value: the best {settings.metric} on validation over a trial's evaluations; {aim} is "
        "better",
        f"dataset {result.data}; trials train with seed {settings.config['seed']}",
        f"drawn by: {result.sampler}, seed {settings.seed}",
        f"begun {result.started[:19]} on {result.machine or 'a machine not recorded'}, "
        f"{result.num_cores} cores, {commit_text(result.commit)}",
    ]
    if result.best is not None:
        best = result.trials[result.best]
        values = ", ".join(f"{name} {value_text(value)}" for name, value in best.params.items())
        notes.insert(1, f"best: trial {best.number}, {settings.metric} {best.value:.5f}: {values}")
    return notes


def _history(study: Study, told: Sequence[TrialRecord]) -> Chart:
    is_higher = study.result.settings.is_higher_better
    reached: list[float | None] = []
    best: float | None = None
    for trial in told:
        if trial.state == "complete" and trial.value is not None:
            is_new = best is None or (trial.value > best) == is_higher
            best = trial.value if is_new else best
        reached.append(best)
    numbers = [trial.number for trial in told]
    line = Series(name="best so far", places=numbers, values=reached, color=_BEST)
    return line_chart(
        "Value by trial",
        [line, *_by_state(told, numbers)],
        Axis(title="trial", format=",d"),
        _metric(study),
    )


def _by_state(told: Sequence[TrialRecord], places: Sequence[float]) -> list[Series]:
    """Points of the complete trials, and of those that were given up or still run."""
    series = []
    for name, color in (("complete", _COMPLETE), ("pruned or unfinished", _PRUNED)):
        chosen = [
            (place, trial.value)
            for place, trial in zip(places, told, strict=True)
            if (trial.state == "complete") == (name == "complete")
        ]
        if chosen:
            series.append(
                Series(
                    name=name,
                    places=[place for place, _ in chosen],
                    values=[value for _, value in chosen],
                    color=color,
                    mark="points",
                )
            )
    return series


def _metric(study: Study) -> Axis:
    return Axis(title=f"{study.result.settings.metric} on validation", format=".4~f")


def _curves(study: Study, told: Sequence[TrialRecord]) -> Chart:
    series = [
        Series(
            name=f"trial {trial.number}, {trial.state}",
            places=list(trial.evaluations),
            values=list(trial.evaluations.values()),
            color=_COMPLETE if trial.state == "complete" else _PRUNED,
            is_faint=True,
            mark="both",
        )
        for trial in told
        if trial.number != study.result.best
    ]
    if study.result.best is not None:
        best = study.result.trials[study.result.best]
        name, values = f"trial {best.number}, the best", best.evaluations
        series.append(
            Series(
                name=name,
                places=list(values),
                values=list(values.values()),
                color=_BEST,
                mark="both",
            )
        )
    most = max(max(trial.evaluations) for trial in told)
    return line_chart(
        "Trials by evaluation",
        series,
        Axis(title="evaluation", format=",d", ticks=range(1, most + 1) if most <= _TICKS else ()),
        _metric(study),
        note="A trial ends early where it is below the median of the others."
        if study.result.settings.is_pruning
        else "",
    )


def _importance(study: Study) -> list[Chart]:
    found = study.result.importances
    if not found:
        return []
    shares = Series(name="share of the variance", values=list(found.values()))
    return [
        dot_chart(
            "Importance",
            list(found),
            [shares],
            Axis(title="share of the values' variance", format=".0%", starts_at_zero=True),
            note="Functional ANOVA of the complete trials; rough where they are few.",
        )
    ]


def _slice(study: Study, told: Sequence[TrialRecord], name: str) -> Chart:
    """Values against one parameter, whatever the others were."""
    parameter = study.result.settings.space.parameters[name]
    drawn = [trial for trial in told if name in trial.params]
    if isinstance(parameter, Range):
        places = [trial.params[name] for trial in drawn]
        x = Axis(title=name, is_log=parameter.is_log, format="~g" if parameter.is_log else ".4~g")
        return line_chart(name, _by_state(drawn, places), x, _metric(study))
    found: dict[str, list[float]] = {}
    for trial in drawn:
        found.setdefault(value_text(trial.params[name]), []).append(trial.value or 0.0)
    values = found.values()
    middle = Series(
        name="median",
        values=[median(each) for each in values],
        low=[min(each) for each in values],
        high=[max(each) for each in values],
    )
    rows = [f"{value} ({len(each)} trial{'s' * (len(each) > 1)})" for value, each in found.items()]
    return dot_chart(name, rows, [middle], _metric(study), note="Whiskers: least and most.")


def _trial_table(study: Study) -> Table:
    parameters = list(study.result.settings.space.parameters)
    columns = ["trial", "state", study.result.settings.metric, *parameters, "evaluations", "s", ""]
    rows: list[list[Cell]] = [
        [
            str(trial.number),
            trial.state,
            Number(trial.value, _FORMAT),
            *(_cell(trial, name) for name in parameters),
            Number(len(trial.evaluations), "d"),
            Number(trial.seconds, ",.1f"),
            trial.reason,
        ]
        for trial in study.result.ranked
    ]
    return Table(columns=columns, rows=rows, text_columns=(0, 1, len(columns) - 1))


def _cell(trial: TrialRecord, name: str) -> Cell:
    value = trial.params.get(name, "")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Number(value, ".4g") if is_number else value_text(value)
