"""A study's folder, from its first trial to its best config.

STUDY/study.json       see `fastdlrm.contracts.study`
STUDY/study.db         see `fastdlrm.tune.search`
STUDY/trials/NNNN/     a run each; only the best complete trial's and running ones keep checkpoints
STUDY/best.toml        the config of the best complete trial, for `fastdlrm train --config`
STUDY/matmul.json      how all trials multiply on a CPU
STUDY/lock             held by the process that goes on with the study

Invariant: nothing here reads the test split.
"""

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fastdlrm import __version__
from fastdlrm.config import from_tree, to_toml, to_tree
from fastdlrm.contracts.manifest import sha256_of, source_commit, write_atomic
from fastdlrm.contracts.study import (
    STUDY,
    Space,
    StudyResult,
    StudySettings,
    read_study,
    value_text,
    write_study,
)
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.metrics.values import LOWER_IS_BETTER, is_better
from fastdlrm.model.build import require_fit
from fastdlrm.train.device import device_name, resolve_device
from fastdlrm.train.matmul import settle
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.stop import StopRequest
from fastdlrm.tune.search import Search, require_optuna, run_folder
from fastdlrm.tune.space import keys_of, recipe_of
from fastdlrm.tune.trial import Order
from fastdlrm.tune.workers import Died, Evaluated, Message, Workers

BEST = "best.toml"
MOST_DEATHS = 2
"""Of a trial's processes, after which it fails rather than being put back."""
POLL_S = 0.5


class Study:
    """A study that this process holds.

    Args:
        folder: Where it lies.
        result: What it says of itself, its trials apart.
        dataset: Which is trained on.
        search: Its trials.
        on_message: Called with each line worth telling.
    """

    def __init__(
        self,
        folder: Path,
        result: StudyResult,
        dataset: Dataset,
        search: Search,
        on_message: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = folder
        self.result = result
        self._dataset = dataset
        self._search = search
        self._on_message = on_message
        self._base = from_tree(result.settings.config, Recipe, str(folder / STUDY))
        self._waiting = search.running()
        self._deaths: Counter[int] = Counter()

    def run(self, num_trials: int, workers: int) -> StudyResult:
        """Train trials until there are so many in all, or until a signal.

        Args:
            num_trials: In all, those of earlier processes included.
            workers: Trials side by side.

        Raises:
            ConfigError: There were that many, and none was completed.
        """
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        with StopRequest() as stop, Workers(workers, threads) as crew:
            is_stopping = False
            while True:
                if stop.requested and not is_stopping:
                    is_stopping = True
                    crew.stop()
                while not is_stopping and crew.has_free:
                    number = self._next(num_trials)
                    if number is None:
                        break
                    crew.give(self._order(number))
                if crew.are_idle:
                    break
                for number, message in crew.messages(POLL_S):
                    if isinstance(message, Evaluated):
                        crew.answer(number, self._evaluated(number, message))
                    else:
                        self._ended(number, message, is_stopping)
        importances = self._search.importances()
        self.result = msgspec.structs.replace(self.result, importances=importances)
        self._write()
        if not is_stopping and self.result.best is None:
            reasons = [trial.reason for trial in self.result.trials if trial.reason]
            raise ConfigError(
                f"{self.folder}: none of {len(self.result.trials)} trials was completed; the first "
                f"failed with: {reasons[0] if reasons else 'no reason'}"
            )
        return self.result

    def recipe(self, number: int) -> Recipe:
        """A trial's config.

        Raises:
            ConfigError: Its values do not go together.
        """
        settings = self.result.settings
        params = self._search.record(number).params
        recipe = recipe_of(self._base, settings.space, params)
        if settings.evaluations_per_epoch is None:
            return recipe
        rows = self._dataset.manifest.splits["train"].num_rows
        num_batches = -(-rows // recipe.train.global_batch_size)
        every = max(1, round(num_batches / settings.evaluations_per_epoch))
        train = msgspec.structs.replace(recipe.train, evaluate_every_steps=every)
        return msgspec.structs.replace(recipe, train=train)

    def _next(self, num_trials: int) -> int | None:
        """A trial to start: one that was interrupted, else a new one."""
        while True:
            if self._waiting:
                number = self._waiting.pop(0)
            elif self._search.num_trials() < num_trials:
                number = self._search.ask()
            else:
                return None
            self._search.start(number)
            try:
                self.recipe(number)
            except ConfigError as problem:
                self._search.end(number, "failed", reason=str(problem), seconds=0.0)
                self._tell(number)
                continue
            return number

    def _order(self, number: int) -> Order:
        return Order(
            number=number,
            config=to_tree(self.recipe(number)),
            data=self._dataset.folder,
            study=self.folder,
            run=run_folder(number),
        )

    def _evaluated(self, number: int, message: Evaluated) -> bool:
        return self._search.evaluated(number, message.evaluation, message.value)

    def _ended(self, number: int, message: Message, is_stopping: bool) -> None:
        """Note a trial's end; one that can go on waits for that."""
        if isinstance(message, Died):
            self._deaths[number] += 1
            if is_stopping or self._deaths[number] < MOST_DEATHS:
                self._waiting.append(number)
                return
            reason = f"its process was ended twice, the second time by {message.reason}"
            self._search.end(number, "failed", reason=reason)
        elif not isinstance(message, Evaluated):
            if message.state == "stopped":
                self._waiting.append(number)
                return
            self._search.end(number, message.state, reason=message.reason, seconds=message.seconds)
        self._tell(number)

    def _tell(self, number: int) -> None:
        """Write what is known now, and say how a trial ended."""
        before = self.result.best
        self._write()
        trial = self.result.trials[number]
        told = [f"trial {number} {trial.state}"]
        if trial.value is not None:
            is_best = " (best)" if self.result.best == number != before else ""
            told.append(f"{self.result.settings.metric} {trial.value:.5f}{is_best}")
        told += [f"{name} {value_text(value)}" for name, value in trial.params.items()]
        self._on_message(", ".join(told) + (f": {trial.reason}" if trial.reason else ""))

    def _write(self) -> None:
        """Write the result and the best config; take away checkpoints that no one needs."""
        trials = self._search.records()
        best, metric = None, self.result.settings.metric
        for trial in trials:
            if trial.state == "complete" and trial.value is not None:
                held = None if best is None else trials[best].value
                best = trial.number if is_better(metric, trial.value, held) else best
        self.result = msgspec.structs.replace(self.result, trials=trials, best=best)
        write_study(self.folder, self.result)
        if best is not None:
            config = to_toml(Run.open(self.folder / trials[best].run).recipe)
            write_atomic(self.folder / BEST, config.encode())
        for trial in trials:
            if trial.state != "running" and trial.number != best:
                shutil.rmtree(self.folder / trial.run / "checkpoints", ignore_errors=True)


def settings_of(
    base: Recipe,
    dataset: Dataset,
    space: Space,
    *,
    seed: int,
    evaluations_per_epoch: int | None,
    is_pruning: bool,
) -> StudySettings:
    """What makes a study, checked before anything is made.

    Args:
        base: The config, with the dataset's [data].
        dataset: To train on.
        space: As `read_space` gives it.
        seed: Of the parameters that are drawn.
        evaluations_per_epoch: None: as the config says.
        is_pruning: Whether trials are given up.

    Raises:
        ConfigError: The config does not fit the dataset or this machine, or evaluations of trials
            could not be compared.
        DataError: The dataset has no validation split.
    """
    require_fit(base.model, dataset.schema)
    resolve_device(base.train.device)
    if "validation" not in dataset.manifest.splits:
        raise DataError(
            f"{dataset.folder}: no split 'validation', by which trials are compared; prepare again "
            "with [data.split.validation] set"
        )
    if (
        is_pruning
        and evaluations_per_epoch is None
        and base.train.evaluate_every_steps
        and "train.global_batch_size" in keys_of(space)
    ):
        raise ConfigError(
            "train.global_batch_size varies, and train.evaluate_every_steps is "
            f"{base.train.evaluate_every_steps}: trials would be compared after other numbers of "
            "rows; give --evaluations-per-epoch, or --no-prune"
        )
    settings = StudySettings(
        config=to_tree(base),
        space=space,
        metric=base.train.best_metric,
        is_higher_better=base.train.best_metric not in LOWER_IS_BETTER,
        seed=seed,
        evaluations_per_epoch=evaluations_per_epoch,
        is_pruning=is_pruning,
        dataset_sha256=sha256_of(dataset.manifest_path),
    )
    return msgspec.json.decode(msgspec.json.encode(settings), type=StudySettings)


@contextmanager
def opened(
    folder: Path,
    settings: StudySettings,
    dataset: Dataset,
    *,
    is_resumed: bool,
    on_message: Callable[[str], None] = lambda line: None,
) -> Iterator[Study]:
    """Make a study, or go on with one.

    Args:
        folder: Its own.
        settings: Of the study; a resumed one must agree.
        dataset: To train on.
        is_resumed: Whether to go on where there is one.
        on_message: Called with each line worth telling.

    Raises:
        ConfigError: The folder holds something else, other settings, or is held by another process;
            Optuna is not installed.
        DataError: Its result is damaged.
    """
    require_optuna()
    is_new = not (folder / STUDY).is_file()
    if not is_resumed and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"--out {folder}: not an empty folder; pass --resume to go on with the study in it, or "
            "name another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise ConfigError(
                f"--out {folder}: another process goes on with this study; wait, or name another "
                "folder"
            ) from problem
        search = Search(folder, settings)
        try:
            result = _begun(folder, settings, dataset, search) if is_new else read_study(folder)
            _require_same(folder, result.settings, settings)
            yield Study(folder, result, dataset, search, on_message)
        finally:
            search.close()


def _begun(folder: Path, settings: StudySettings, dataset: Dataset, search: Search) -> StudyResult:
    """Choose how to multiply, and write a result without trials."""
    train = from_tree(settings.config, Recipe, "config").train
    device = resolve_device(train.device)
    settle(folder, device, train.precision)
    result = StudyResult(
        created_by=__version__,
        commit=source_commit(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=device_name(device),
        num_cores=len(os.sched_getaffinity(0)),
        sampler=search.sampler,
        data=str(dataset.folder),
        settings=settings,
        trials=(),
        best=None,
        importances={},
    )
    write_study(folder, result)
    return result


def _require_same(folder: Path, held: StudySettings, asked: StudySettings) -> None:
    for field in StudySettings.__struct_fields__:
        if getattr(held, field) != getattr(asked, field):
            raise ConfigError(
                f"--resume {folder}: {field} is not the study's; resume with the options it was "
                "begun with (--trials, --workers and --test may change)"
            )
