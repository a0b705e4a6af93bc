"""A study as plain text: its trials, best first, and what is to be done with it."""

from collections.abc import Iterator
from pathlib import Path

from fastdlrm.cli.bench_text import table
from fastdlrm.contracts.study import StudyResult, value_text


def study_text(study: StudyResult, folder: Path) -> str:
    """What a study found, for a terminal.

    Args:
        study: With trials.
        folder: Where it lies.
    """
    settings = study.settings
    columns = ("trial", "state", settings.metric, "evaluations", "s", *settings.space.parameters)
    lines = list(table(columns, _rows(study)))
    counts = {
        state: sum(trial.state == state for trial in study.trials)
        for state in ("complete", "pruned", "failed", "running")
    }
    lines += ["", ", ".join(f"{n} {state}" for state, n in counts.items() if n)]
    if study.importances:
        shares = (f"{name} {share:.0%}" for name, share in study.importances.items())
        lines.append(f"importance: {', '.join(shares)}")
    if study.best is not None:
        lines.append(f"best: trial {study.best}, config {folder / 'best.toml'}")
    return "\n".join(lines)


def _rows(study: StudyResult) -> Iterator[list[str]]:
    for trial in study.ranked:
        yield [
            str(trial.number),
            trial.state,
            "-" if trial.value is None else f"{trial.value:.5f}",
            str(len(trial.evaluations)),
            "-" if trial.seconds is None else f"{trial.seconds:.0f}",
            *(value_text(trial.params.get(name, "-")) for name in study.settings.space.parameters),
        ]
