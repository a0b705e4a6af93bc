"""Time calls: warm-up, device sync, rounds in turn, every sample kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from fastdlrm.contracts.bench_result import Effort, Summary
from fastdlrm.stats import Values, bootstrap_interval, percentile, percentile_interval

MAX_SAMPLES = 2000
"""Of one measurement: more say little and make results large."""

MIN_ROUNDS = 3
"""Before the spread may end a measurement."""

PATIENCE = 5
"""How many times longer than asked for to wait for the fewest samples."""

Rounds = tuple[tuple[float, ...], ...]


class Timed(NamedTuple):
    """A measurement's samples.

    Attributes:
        rounds: Milliseconds a call, by round.
        stopped: "spread", "time" or "samples".
    """

    rounds: Rounds
    stopped: str


@dataclass(slots=True)
class _State:
    call: Callable[[int], object]
    rounds: list[tuple[float, ...]] = field(default_factory=list)
    next_input: int = 0
    stopped: str = ""


def measure(
    calls: Sequence[Callable[[int], object]], device: torch.device, effort: Effort
) -> list[Timed]:
    """Time several calls, one after the other, round by round.

    Args:
        calls: Each takes k = 0, 1, 2, ...: by which it chooses its input.
        device: Awaited before each stamp.
        effort: When to stop.

    Returns:
        One a call, in their order.
    """
    states = [_State(call) for call in calls]
    for state in states:
        _warm_up(state, device, effort.warmup_s)
    for turn in range(effort.num_rounds):
        for state in states[turn % len(states) :] + states[: turn % len(states)]:
            if not state.stopped:
                _round(state, device, effort)
    return [Timed(tuple(state.rounds), state.stopped or "time") for state in states]


def summarise(rounds: Rounds) -> Summary:
    """Median, its interval and percentiles of all samples.

    Args:
        rounds: At least one sample.
    """
    values = values_of(rounds)
    low, high = bootstrap_interval(values, median, block=block_of(rounds))
    return Summary(
        num_samples=len(values),
        median=median(values),
        low=low,
        high=high,
        p95=percentile(values, 95) if len(values) >= 20 else None,
        p99=percentile(values, 99) if len(values) >= 100 else None,
        mean=float(values.mean()),
        p5=percentile(values, 5) if len(values) >= 20 else None,
    )


def values_of(rounds: Rounds) -> Values:
    """All samples, in the order in which they came."""
    return np.array([sample for samples in rounds for sample in samples])


def block_of(rounds: Rounds) -> int:
    """Samples that the bootstrap draws together: those of a round, what came over it came over all.

    One where there are too few rounds to draw from.
    """
    if len(rounds) < MIN_ROUNDS:
        return 1
    return max(1, sum(map(len, rounds)) // len(rounds))


def median(values: Values) -> float:
    """The middle one, or the mean of the two."""
    return float(np.median(values))


def wait(device: torch.device) -> None:
    """Until a device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _round(state: _State, device: torch.device, effort: Effort) -> None:
    rounds = effort.num_rounds
    fewest, most = -(-effort.min_samples // rounds), MAX_SAMPLES // rounds
    budget = effort.seconds / rounds
    _call(state, device)  # caches hold another measurement's data
    began = time.perf_counter()
    samples: list[float] = []
    while True:
        samples.append(_call(state, device))
        elapsed = time.perf_counter() - began
        if len(samples) >= most or elapsed >= PATIENCE * budget:
            break
        if elapsed >= budget and len(samples) >= fewest:
            break
    state.rounds.append(tuple(samples))
    values = values_of(tuple(state.rounds))
    if len(state.rounds) >= min(MIN_ROUNDS, rounds) and len(values) >= effort.min_samples:
        middle = percentile(values, 50)
        low, high = percentile_interval(values, 50)
        if max(high - middle, middle - low) <= effort.spread * middle:
            state.stopped = "spread"
    if not state.stopped and len(state.rounds) == rounds and len(values) >= most * rounds:
        state.stopped = "samples"


def _warm_up(state: _State, device: torch.device, seconds: float) -> None:
    began = time.perf_counter()
    for _ in range(2):
        _call(state, device)
    while time.perf_counter() - began < seconds:
        _call(state, device)


def _call(state: _State, device: torch.device) -> float:
    """Milliseconds of a call, with the next input."""
    wait(device)
    began = time.perf_counter_ns()
    state.call(state.next_input)
    wait(device)
    state.next_input += 1
    return (time.perf_counter_ns() - began) / 1e6
