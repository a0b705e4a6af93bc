"""Where a step's time goes: torch's profiler, condensed to classes of operators."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CLASSES = (
    ("lookup", ("pooled_lookup", "gather_rows", "lookup")),
    ("interaction", ("interaction", "bmm")),
    ("update", ("update_rows", "row_update", "rowwise", "embedding_bag", "dense_update", "run_")),
    ("sort", ("sort", "row_order", "radix", "unique", "chunk_")),
    (
        "gemm",
        ("addmm", "::mm", "::linear", "gemm", "nvjet", "cutlass", "gemv", "splitk", "input_grad"),
    ),
)
"""The first class one of whose words is in an operator's name has its time."""

TOP = 12
"""Operators listed one by one."""


def breakdown(step: Callable[[int], None], device: torch.device, steps: int = 8) -> dict[str, Any]:
    """Profile some steps.

    An operator inside a classed one (`index_select` inside `pooled_lookup`) counts for that. With
    CUDA the times are those of kernels on the device, by the operator that launched them or, in a
    replayed graph, by their own names; else those of operators on the CPU.

    Args:
        step: The k-th step.
        device: Where it runs.
        steps: How many.

    Returns:
        ms_a_step by class, and `top`: [name, class, ms a step, calls a step] of the largest.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    step(0)
    with profile(activities=activities) as profiler:
        for k in range(steps):
            step(k)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])
    for name, kind, us in _timed(profiler.events(), device):
        entry = rows[name, kind]
        entry[0] += us
        entry[1] += 1
    by_class: dict[str, float] = {name: 0.0 for name, _ in CLASSES} | {"other": 0.0}
    for (_, kind), (us, _) in rows.items():
        by_class[kind] += us / steps / 1e3
    largest = sorted(rows.items(), key=lambda item: -item[1][0])[:TOP]
    top = [[n[:80], k, us / steps / 1e3, calls / steps] for (n, k), (us, calls) in largest]
    return {"ms_a_step": by_class, "top": top}


def exposed(events: Any, word: str) -> tuple[float, float]:
    """Milliseconds in which kernels with a word in their name ran, and those nothing else did."""
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            span = event.time_range
            spans[word in event.name.lower()].append((span.start, span.end))
    named, others = (_merged(spans[kind]) for kind in (True, False))
    total = sum(stop - start for start, stop in named)
    both = sum(stop - start for start, stop in _merged([*named, *others]))
    return total / 1e3, (both - sum(stop - start for start, stop in others)) / 1e3


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans of time with overlaps joined, ascending."""
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _timed(events: Any, device: torch.device) -> list[tuple[str, str, float]]:
    """Name, class and microseconds of each operator or kernel."""
    if device.type == "cpu":
        return [
            (event.name, _class(event), event.self_cpu_time_total)
            for event in events
            if event.device_type == DeviceType.CPU
        ]
    launched = {}
    for event in events:
        if event.device_type == DeviceType.CPU:
            for kernel in event.kernels:
                launched[kernel.name, kernel.duration] = _class(event)
    found = []
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            us = event.self_device_time_total
            kind = _class_of_name(event.name)
            if kind == "other":
                kind = launched.get((event.name, us), "other")
            found.append((event.name, kind, us))
    return found


def _class(event: Any) -> str:
    """Of the outermost of an operator's callers that has one, else its own."""
    found = "other"
    while event is not None:
        kind = _class_of_name(event.name)
        found = found if kind == "other" else kind
        event = event.cpu_parent
    return found


def _class_of_name(name: str) -> str:
    lowered = name.lower()
    for kind, words in CLASSES:
        if any(word in lowered for word in words):
            return kind
    return "other"
