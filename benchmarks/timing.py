"""Several systems timed in one process, in turn: what else the machine does hits all alike."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch

BLOCK_S = 0.05
"""Steps of one system in a row, in seconds of the fastest: long enough to have warm caches."""

MAX_BLOCK = 20
MIN_ROUNDS = 5


class System(NamedTuple):
    """Something to time.

    Attributes:
        name: In the results.
        step: Does the k-th step.
        float32_precision: As torch.set_float32_matmul_precision takes it; set before each block.
    """

    name: str
    step: Callable[[int], object]
    float32_precision: str = "highest"


def interleave(
    systems: Sequence[System], device: torch.device, seconds: float
) -> list[dict[str, float]]:
    """Time blocks of steps, one system after another, again and again.

    Args:
        systems: What to time; their order rotates from round to round.
        device: Its events stamp the time where it is a GPU.
        seconds: Rounds begin until then; at least a few.

    Returns:
        One sample a round: each system's median ms a step of its block.
    """
    fastest = min(_block(system, 3, 0, device)[-1] for system in systems) / 1e3
    size = min(max(round(BLOCK_S / fastest), 2), MAX_BLOCK)
    samples: list[dict[str, float]] = []
    began, rounds = time.monotonic(), 0
    while rounds < MIN_ROUNDS or time.monotonic() - began < seconds:
        turn = rounds % len(systems)
        sample = {f"{system.name}_ms": 0.0 for system in systems}
        for system in (*systems[turn:], *systems[:turn]):
            times = _block(system, size, rounds * size, device)
            sample[f"{system.name}_ms"] = round(median(times), 5)
        samples.append(sample)
        rounds += 1
    return samples


def medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of each column."""
    return {name: median(sample[name] for sample in samples) for name in samples[0]}


def load_average() -> float:
    """Runnable processes over the last minute: what else the machine was doing."""
    return round(os.getloadavg()[0], 2)


def _block(system: System, size: int, first: int, device: torch.device) -> list[float]:
    """The ms of each of some steps, after one that is not timed."""
    torch.set_float32_matmul_precision(system.float32_precision)
    system.step(first)
    if device.type == "cuda":
        return _device_block(system, size, first, device)
    times = []
    for k in range(first, first + size):
        began = time.perf_counter_ns()
        system.step(k)
        times.append((time.perf_counter_ns() - began) / 1e6)
    return times


def _device_block(system: System, size: int, first: int, device: torch.device) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(size + 1)]
    torch.cuda.synchronize(device)
    for k, event in enumerate(events[:-1]):
        event.record()
        system.step(first + k)
    events[-1].record()
    torch.cuda.synchronize(device)
    return [a.elapsed_time(b) for a, b in pairwise(events)]
