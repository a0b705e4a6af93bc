"""One trial: a run like any other, whose evaluations are told to the study as they are made."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from fastdlrm.config import from_tree
from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.contracts.record import Record, record_lines
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import FastDLRMError
from fastdlrm.metrics.values import MetricValues
from fastdlrm.train.matmul import FILE as MATMUL
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is to train."""

    number: int
    """Of the trial."""
    config: dict[str, Any]
    """The trial's."""
    data: Path
    """Dataset folder."""
    study: Path
    run: str
    """The run's folder, relative to the study."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial ended."""

    state: Literal["complete", "pruned", "failed", "stopped"]
    """stopped: by a signal; it can go on where it stopped."""
    reason: str = ""
    """Why it failed."""
    seconds: float = 0.0
    """In this process."""


def train_trial(order: Order, on_evaluation: Callable[[int, float], bool]) -> Outcome:
    """Train a trial, or go on with it at its last checkpoint.

    Args:
        order: What to train.
        on_evaluation: Called with the number of an evaluation, from 1, and the metric; True gives
            the trial up. Evaluations made before it was interrupted are told again.
    """
    began = time.perf_counter()
    try:
        outcome = _trained(order, on_evaluation)
    except (FastDLRMError, torch.OutOfMemoryError) as problem:
        outcome = Outcome(state="failed", reason=str(problem))
    return msgspec.structs.replace(outcome, seconds=time.perf_counter() - began)


def _trained(order: Order, on_evaluation: Callable[[int, float], bool]) -> Outcome:
    recipe = from_tree(order.config, Recipe, f"trial {order.number}")
    dataset, folder = Dataset.open(order.data), order.study / order.run
    metric = recipe.train.best_metric
    run = Run.resume(folder, recipe, dataset)
    way = order.study / MATMUL
    if way.is_file() and not (folder / MATMUL).exists():
        write_atomic(folder / MATMUL, way.read_bytes())  # all trials multiply in the same way
    is_pruned = False

    def tell(step: int, values: MetricValues) -> bool:
        nonlocal is_pruned
        value = getattr(values, metric)
        if value is not None:
            is_pruned = on_evaluation(len(_evaluations(folder, metric)), value)
        return is_pruned

    for evaluation, value in enumerate(_evaluations(folder, metric), 1):
        if value is not None:
            is_pruned = on_evaluation(evaluation, value)
    if is_pruned:
        return Outcome(state="pruned")
    result = Trainer(run, dataset, on_evaluation=tell).train()
    if result.is_finished and result.best_step is None:
        return Outcome(
            state="failed", reason=f"{metric} is undefined on validation: it has rows of one class"
        )
    if result.is_finished:
        return Outcome(state="complete")
    return Outcome(state="pruned" if is_pruned else "stopped")


def _evaluations(run: Path, metric: str) -> list[float | None]:
    """The metric of every evaluation so far."""
    records = [msgspec.json.decode(line, type=Record) for line in record_lines(run)]
    return [record.values[metric] for record in records if record.kind == "validation"]
