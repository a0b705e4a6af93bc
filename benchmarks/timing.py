"""Several systems timed in one process, in turn: what else the machine does hits all alike."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

BLOCK_S = 0.2
"""Steps of one system in a row, in seconds of the fastest: long enough to have warm caches."""

MAX_BLOCK = 50
MIN_ROUNDS = 7

QUIET_SHARE = 0.05
"""Rounds in which other processes used more than this share of the machine do not count."""

PATIENCE = 10
"""How many times longer than asked for to wait for quiet rounds."""


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
        One sample a round: each system's median ms a step of its block, and `others_share`, what
        other processes took of the machine's cores meanwhile.
    """
    fastest = min(_block(system, 3, 0, device)[-1] for system in systems) / 1e3
    size = min(max(round(BLOCK_S / fastest), 2), MAX_BLOCK)
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    while not _is_enough(samples, (time.monotonic() - began) / seconds):
        turn = len(samples) % len(systems)
        sample = {f"{system.name}_ms": 0.0 for system in systems}
        before = _busy_seconds()
        for system in (*systems[turn:], *systems[:turn]):
            times = _block(system, size, len(samples) * size, device)
            sample[f"{system.name}_ms"] = round(median(times), 5)
        sample["others_share"] = _others_share(before)
        samples.append(sample)
    return samples


def quiet(samples: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Samples that count; all of them where too few are quiet."""
    found = [sample for sample in samples if sample["others_share"] <= QUIET_SHARE]
    return found if len(found) >= MIN_ROUNDS else list(samples)


def medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of each column over the samples that count."""
    names = [name for name in samples[0] if name.endswith("_ms")]
    return {name: median(sample[name] for sample in quiet(samples)) for name in names}


def conditions(samples: Sequence[dict[str, float]], load_before: float) -> dict[str, Any]:
    """What else the machine did: rounds in all, those that count, and load before and after."""
    return {
        "rounds": len(samples),
        "quiet_rounds": sum(sample["others_share"] <= QUIET_SHARE for sample in samples),
        "load_average": [load_before, load_average()],
    }


def load_average() -> float:
    """Runnable processes over the last minute: what else the machine was doing."""
    return round(os.getloadavg()[0], 2)


def _is_enough(samples: Sequence[dict[str, float]], elapsed: float) -> bool:
    """Whether to stop; `elapsed` is in units of the time asked for."""
    num_quiet = sum(sample["others_share"] <= QUIET_SHARE for sample in samples)
    if len(samples) < MIN_ROUNDS or elapsed < 1:
        return False
    return num_quiet >= MIN_ROUNDS or elapsed > PATIENCE


def _busy_seconds() -> tuple[float, float, float]:
    """Now, core seconds the whole machine has worked, and this process of them."""
    own = os.times()
    line = Path("/proc/stat").read_text().partition("\n")[0].split()
    user, nice, system, _, _, *interrupts = (int(word) for word in line[1:])
    busy = (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, own.user + own.system


def _others_share(before: tuple[float, float, float]) -> float:
    """What other processes took of all cores since `before`."""
    now = _busy_seconds()
    wall, busy, own = (b - a for a, b in zip(before, now, strict=True))
    return round(max(busy - own, 0.0) / (wall * (os.cpu_count() or 1)), 3)


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
