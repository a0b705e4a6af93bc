"""What the training loop has done: its place, what it tells and ends with, its time."""

import time
from dataclasses import dataclass

import msgspec

from fastdlrm.metrics.values import MetricValues


class LoopState(msgspec.Struct, kw_only=True):
    """Where the loop stands, besides the tensors."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Epoch of the next batch."""
    batch: int = 0
    """Index of the next global batch in its epoch."""
    best_value: float | None = None
    """Best validation metric so far."""
    best_step: int | None = None
    """Step of the best validation metric."""
    evaluations_since_best: int = 0
    """For early stopping."""
    validation: MetricValues | None = None
    """Metrics of the last evaluation."""
    window_steps: int = 0
    """Steps since the last training record."""


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a training run ends with."""

    run: str
    """The run's folder."""
    step: int
    """Optimizer steps done in all."""
    is_finished: bool
    """False where a signal or an evaluation ended it; --resume continues."""
    stopped_early: bool
    """Whether early_stop_patience ended it."""
    reached_target: bool
    """Whether an evaluation reached target_metric_value; False without one."""
    best_step: int | None
    """Step of the best checkpoint; None without validation."""
    validation: MetricValues | None
    """Metrics of the last evaluation."""
    samples_per_s: float
    """Training rows a second in this process, evaluation and checkpoints left out."""
    data_wait_share: float
    """Share of the training time spent waiting for the loader."""


@dataclass(slots=True)
class Progress:
    """What a progress display is told after each step."""

    step: int
    total_steps: int
    epoch: int
    samples_per_s: float
    data_wait_share: float
    loss: float | None
    """Mean since the last training record; None between records."""


class Clock:
    """Time spent training and waiting for data, evaluation and checkpoints left out."""

    def __init__(self) -> None:
        self._mark = self._wait_ns = self._step_ns = self._samples = 0

    def start(self) -> None:
        """Wait for data from now on."""
        self._mark = time.perf_counter_ns()

    def has_data(self) -> None:
        """A batch is there; what follows is training."""
        now = time.perf_counter_ns()
        self._wait_ns += now - self._mark
        self._mark = now

    def has_stepped(self, num_samples: int) -> None:
        """A step of so many samples is done."""
        self._step_ns += time.perf_counter_ns() - self._mark
        self._samples += num_samples

    @property
    def samples_per_s(self) -> float:
        """Samples of all steps by the time of steps and waits; 0 before the first."""
        total = self._wait_ns + self._step_ns
        return self._samples / (total / 1e9) if total else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of that time spent waiting for data."""
        total = self._wait_ns + self._step_ns
        return self._wait_ns / total if total else 0.0
