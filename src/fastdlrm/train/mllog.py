"""MLPerf's log of a training run: what is trained, when its parts begin and end, what it reaches.

Invariants: the first rank alone writes; a log tells of one run from its start to its end, so there
is none of a resumed one.

Source: the training rules of MLCommons and the rules that `mlperf_logging.compliance_checker` has
for dlrm_dcnv2.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastdlrm.errors import ConfigError
from fastdlrm.train.recipe import MlperfConfig, Recipe

PRECISIONS = {"fp32": "fp32", "tf32": "tf32", "bf16": "bfloat16"}
"""Names of ours and of MLPerf's."""


class Mllog:
    """Writer of MLPerf's log, or of nothing.

    Epochs and evaluations have numbers of epochs from the start: an evaluation after a quarter of
    the first has 0.25. Blocks are what is trained between evaluations.

    Args:
        path: File to make; None: nothing is written.

    Raises:
        ConfigError: The package is not installed, or there is such a file already.
    """

    def __init__(self, path: Path | None) -> None:
        self._logger: Any = None
        self._block: dict[str, float] | None = None
        self._epoch = 0
        if path is None:
            return
        if find_spec("mlperf_logging") is None:
            raise ConfigError(
                "--mllog: MLPerf's logger is not installed; pip install 'fastdlrm[mlperf]'"
            )
        from mlperf_logging.mllog.mllog import MLLogger

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._handler = logging.FileHandler(path, mode="x")
        except FileExistsError:
            raise ConfigError(
                f"--mllog {path}: exists already; a log is of one run, name another file"
            ) from None
        lines = logging.Logger("mllog", logging.INFO)
        lines.addHandler(self._handler)
        self._logger = MLLogger(lines)

    def init_start(self, config: MlperfConfig, platform: str) -> None:
        """The process begins: no row of the data was read yet.

        Args:
            config: Of the submission.
            platform: Where it names none.
        """
        self._events(
            submission_benchmark=config.benchmark,
            submission_org=config.organization,
            submission_division=config.division,
            submission_status=config.status,
            submission_platform=config.platform or platform,
            cache_clear=config.cache_cleared,
        )
        self._start("init_start")

    def run_start(self, values: dict[str, Any]) -> None:
        """All is built, and training begins.

        Args:
            values: Events that say what is trained: `described` makes them.
        """
        self._events(**values)
        self._end("init_stop")
        self._start("run_start")

    def epoch_start(self, epoch: int) -> None:
        """An epoch, counted from 0, begins."""
        self._epoch = epoch + 1
        self._start("epoch_start", epoch_num=self._epoch)

    def block_start(self, done: float, planned: float) -> None:
        """Steps up to the next evaluation begin.

        Args:
            done: Epochs trained.
            planned: Epochs from an evaluation to the next.
        """
        self._block = {"first_epoch_num": done}
        self._start("block_start", **self._block, epoch_count=planned)

    def epoch_stop(self) -> None:
        """The epoch has ended."""
        self._block_stop()
        self._end("epoch_stop", epoch_num=self._epoch)

    def eval_start(self, done: float) -> None:
        """An evaluation begins.

        Args:
            done: Epochs trained.
        """
        self._block_stop()
        self._start("eval_start", epoch_num=done)

    def eval_stop(self, done: float, value: float | None) -> None:
        """An evaluation has ended.

        Args:
            done: Epochs trained.
            value: What it found; None: it is not defined.
        """
        if self._logger is not None and value is not None:
            self._logger.event("eval_accuracy", value, {"epoch_num": done})
        self._end("eval_stop", epoch_num=done)

    def run_stop(self, is_success: bool, done: float) -> None:
        """Training has ended; the file is whole.

        Args:
            is_success: Whether it reached its target.
            done: Epochs trained.
        """
        status = "success" if is_success else "aborted"
        self._end("run_stop", status=status, epoch_num=done)
        if self._logger is not None:
            self._handler.close()
            self._logger = None

    def _block_stop(self) -> None:
        if self._block is not None:
            self._end("block_stop", **self._block)
            self._block = None

    def _events(self, **values: Any) -> None:
        if self._logger is not None:
            for name, value in values.items():
                self._logger.event(name, value)

    def _start(self, name: str, **metadata: Any) -> None:
        if self._logger is not None:
            self._logger.start(name, None, metadata)

    def _end(self, name: str, **metadata: Any) -> None:
        if self._logger is not None:
            self._logger.end(name, None, metadata)


SILENT = Mllog(None)
"""Writes nothing."""


def require_loggable(recipe: Recipe, *, has_validation: bool) -> None:
    """Refuse a run that MLPerf's log cannot tell of.

    Raises:
        ConfigError: It is not said who runs, or what is to be reached.
    """
    train = recipe.train
    if not recipe.mlperf.organization:
        raise ConfigError(
            "--mllog: mlperf.organization is empty; name who submits in the section [mlperf]"
        )
    if train.target_metric_value is None or train.best_metric != "auc":
        raise ConfigError(
            f"--mllog: train.target_metric_value is {train.target_metric_value} and "
            f"train.best_metric {train.best_metric!r}; MLPerf times the way to an AUC: set a "
            "target and best_metric = 'auc'"
        )
    if not has_validation:
        raise ConfigError(
            "--mllog: the dataset has no validation split, on which MLPerf's target is reached; "
            "prepare it with one"
        )


def described(recipe: Recipe, num_train: int, num_validation: int) -> dict[str, Any]:
    """Events that say what a run trains.

    Args:
        recipe: Of the run.
        num_train: Rows.
        num_validation: Rows.
    """
    train = recipe.train
    dense, sparse, schedule = train.dense_optimizer, train.sparse_optimizer, train.schedule
    found = {
        "seed": recipe.seed,
        "global_batch_size": train.global_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train_samples": num_train,
        "eval_samples": num_validation,
        "lowest_numerical_precision_in_linear": PRECISIONS[train.precision],
        "opt_name": dense.name,
        "opt_base_learning_rate": dense.learning_rate,
        "opt_weight_decay": dense.weight_decay,
        "opt_sparse_name": sparse.name,
        "opt_sparse_base_learning_rate": sparse.learning_rate,
        "opt_learning_rate_warmup_steps": schedule.warmup_steps,
        "opt_learning_rate_decay_start_step": schedule.decay_start_step,
        "opt_learning_rate_decay_steps": schedule.decay_steps,
    }
    if dense.name == "adagrad":
        found |= {
            "opt_adagrad_learning_rate_decay": 0,
            "opt_adagrad_initial_accumulator_value": 0,
            "opt_adagrad_epsilon": dense.eps,
        }
    return found
