"""What is tried next, what is given up: Optuna's study of a space, in STUDY/study.db.

Only one process at a time opens it. What the library draws for a trial is a function of the
study's seed, the trial's number and the trials before it, so a study that was killed goes on as if
nothing had happened.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fastdlrm.contracts.study import (
    Choice,
    Range,
    StudySettings,
    TrialRecord,
    TrialState,
    Variant,
)
from fastdlrm.errors import ConfigError

DATABASE = "study.db"
NAME = "fastdlrm"
NUM_RANDOM_TRIALS = 10
"""Drawn at random before the sampler has enough to learn from."""
NUM_UNPRUNED_TRIALS = 5
"""Complete before any is pruned."""
LEAST_FOR_IMPORTANCE = 10
"""Complete trials below which importances would be chance."""


def require_optuna() -> None:
    """Check that the library is there, and what it needs for importances.

    Raises:
        ConfigError: One of them is not.
    """
    for module, name in (("optuna", "optuna"), ("sklearn", "scikit-learn")):
        if find_spec(module) is None:
            raise ConfigError(f"fastdlrm tune needs {name}; pip install 'fastdlrm[tune]'")


def run_folder(number: int) -> str:
    """Where a trial's run lies, relative to the study."""
    return f"trials/{number:04d}"


class Search:
    """A study's trials.

    Args:
        folder: The study's; its database is made where there is none.
        settings: The study's.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, folder: Path, settings: StudySettings) -> None:
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._settings = settings
        pruner: Any = optuna.pruners.NopPruner()
        if settings.is_pruning:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=NUM_UNPRUNED_TRIALS)
        self._storage = _storage(folder / DATABASE)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=NAME,
            direction="maximize" if settings.is_higher_better else "minimize",
            pruner=pruner,
            load_if_exists=True,
        )

    @property
    def sampler(self) -> str:
        """How parameters are drawn, in words."""
        return f"tree-structured Parzen estimator, Optuna {self._optuna.__version__}"

    def close(self) -> None:
        """Close the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def num_trials(self) -> int:
        """Trials so far, those that run included."""
        return len(self._study.trials)

    def running(self) -> list[int]:
        """Numbers of the trials that have no end yet."""
        state = self._optuna.trial.TrialState
        return [t.number for t in self._study.get_trials(states=(state.RUNNING,))]

    def ask(self) -> int:
        """Draw a new trial's parameters; its number."""
        self._seed(self.num_trials())
        return self._draw(self._study.ask()).number

    def start(self, number: int) -> dict[str, Any]:
        """Note that a trial starts, or starts again; its parameters."""
        self._seed(number)
        trial = self._draw(self._attached(number))
        trial.set_user_attr("num_starts", trial.user_attrs.get("num_starts", 0) + 1)
        if "started" not in trial.user_attrs:
            trial.set_user_attr("started", datetime.now(UTC).isoformat(timespec="seconds"))
        return self._params(trial.params)

    def evaluated(self, number: int, evaluation: int, value: float) -> bool:
        """Note an evaluation of a running trial; whether to give the trial up.

        Args:
            number: Of the trial.
            evaluation: From 1; noted once, should it be told again.
            value: The metric.
        """
        trial = self._attached(number)
        if evaluation not in self._frozen(number).intermediate_values:
            trial.report(value, evaluation)
        return bool(trial.should_prune())

    def end(
        self,
        number: int,
        state: TrialState,
        *,
        reason: str = "",
        seconds: float | None = None,
    ) -> None:
        """Note a trial's end; the value of a complete one is its best evaluation's.

        Args:
            number: Of the trial.
            state: complete, pruned or failed.
            reason: Why it failed.
            seconds: It took.
        """
        trial = self._attached(number)
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("seconds", seconds)
        states = self._optuna.trial.TrialState
        ends = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        value = self.record(number).value if state == "complete" else None
        self._study.tell(number, value, state=ends[state])

    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, by number."""
        return tuple(map(self._record, self._study.trials))

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return self._record(self._frozen(number))

    def importances(self) -> dict[str, float]:
        """Share of the values' variance that each parameter accounts for, largest first.

        By functional ANOVA on a random forest of the complete trials; empty where they are too few
        or all of one value.

        Source: Hutter, Hoos, Leyton-Brown 2014, ICML.
        """
        states = (self._optuna.trial.TrialState.COMPLETE,)
        values = [trial.value for trial in self._study.get_trials(states=states)]
        if len(values) < LEAST_FOR_IMPORTANCE or len(set(values)) == 1:
            return {}
        evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = self._optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}

    def _seed(self, number: int) -> None:
        """Draw by numbers of the trial's own from here on."""
        state = np.random.SeedSequence([self._settings.seed, number]).generate_state(1)
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=int(state[0]), n_startup_trials=NUM_RANDOM_TRIALS, constant_liar=True
        )

    def _draw(self, trial: Any) -> Any:
        """Every parameter that the trial has not yet."""
        for name, parameter in self._settings.space.parameters.items():
            if not isinstance(parameter, Range):
                trial.suggest_categorical(name, list(_labels(parameter)))
                continue
            low, high, is_log = parameter.low, parameter.high, parameter.is_log
            if parameter.is_integer:
                step = int(parameter.step or 1)
                trial.suggest_int(name, int(low), int(high), step=step, log=is_log)
            else:
                trial.suggest_float(name, low, high, step=parameter.step, log=is_log)
        return trial

    def _params(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        parameters = self._settings.space.parameters
        return {
            name: drawn[name] if isinstance(one, Range) else _labels(one)[drawn[name]]
            for name, one in parameters.items()
            if name in drawn
        }

    def _frozen(self, number: int) -> Any:
        return self._storage.get_trial(self._id(number))

    def _attached(self, number: int) -> Any:
        return self._optuna.trial.Trial(self._study, self._id(number))

    def _id(self, number: int) -> int:
        study = self._study._study_id
        return int(self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def _record(self, trial: Any) -> TrialRecord:
        evaluations = {int(k): float(v) for k, v in sorted(trial.intermediate_values.items())}
        best: Callable[..., float] = max if self._settings.is_higher_better else min
        states: dict[str, TrialState] = {"FAIL": "failed"}
        told = trial.user_attrs
        return TrialRecord(
            number=trial.number,
            state=states.get(trial.state.name) or trial.state.name.lower(),
            params=self._params(trial.params),
            value=best(evaluations.values()) if evaluations else None,
            evaluations=evaluations,
            run=run_folder(trial.number),
            started=told.get("started", ""),
            seconds=told.get("seconds"),
            num_starts=told.get("num_starts", 0),
            reason=told.get("reason", ""),
        )


def _storage(path: Path) -> Any:
    """A database that loses nothing when its process is killed, and need not wait for the disk."""
    import optuna
    import sqlalchemy

    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    storage.engine.dispose()  # what was opened to make it

    def set_up(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(storage.engine, "connect", set_up)
    return storage


def _labels(parameter: Choice | Variant) -> dict[str, Any]:
    """Values by the text that stands for them in the database."""
    if isinstance(parameter, Variant):
        return {name: name for name in parameter.options}
    return {msgspec.json.encode(value).decode(): value for value in parameter.values}
