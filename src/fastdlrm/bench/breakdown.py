"""Where a step's time goes: torch's profiler, condensed to classes of operators."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

Classes = Sequence[tuple[str, Sequence[str]]]

CLASSES: Classes = (
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

MARK = "measured step"
"""Range that holds a profiled step."""

TOP = 12
"""Operators listed one by one."""


def breakdown(
    step: Callable[[int], object],
    device: torch.device,
    steps: int = 8,
    classes: Classes = CLASSES,
) -> dict[str, Any]:
    """Profile some steps.

    An operator inside a classed one (`index_select` inside `pooled_lookup`) counts for that. With
    CUDA the times are those of kernels on the device, by the operator that launched them or, in a
    replayed graph, by their own names; else those of operators on the CPU.

    Args:
        step: The k-th step.
        device: Where it runs.
        steps: How many.
        classes: Names, each with words of which its operators' names hold one.

    Returns:
        ms_a_step by class, and `top`: [name, class, ms a step, calls a step] of the largest.
    """
    step(0)
    with profile(activities=_activities(device), acc_events=True) as profiler:
        for k in range(steps):
            step(k)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    rows: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])
    for found in _timed(profiler.events(), device, classes):
        entry = rows[found.name, found.kind]
        entry[0] += found.us
        entry[1] += 1
    by_class: dict[str, float] = {name: 0.0 for name, _ in classes} | {"other": 0.0}
    for (_, kind), (us, _) in rows.items():
        by_class[kind] += us / steps / 1e3
    largest = sorted(rows.items(), key=lambda item: -item[1][0])[:TOP]
    top = [[n[:80], k, us / steps / 1e3, calls / steps] for (n, k), (us, calls) in largest]
    return {"ms_a_step": by_class, "top": top}


def class_times(
    step: Callable[[int], object], device: torch.device, steps: int, classes: Classes
) -> dict[str, list[float]]:
    """Profile some steps, each by itself: what else the machine does spoils one, not their mean.

    Args:
        step: The k-th step.
        device: Where it runs; it is awaited after each step.
        steps: How many.
        classes: As for `breakdown`.

    Returns:
        By class, and "other", the milliseconds of each step.
    """
    step(0)
    with profile(activities=_activities(device), acc_events=True) as profiler:
        for k in range(steps):
            with record_function(MARK):
                step(k)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
    events = profiler.events()
    marks = sorted(
        event.time_range.start
        for event in events
        if event.name == MARK and event.device_type == DeviceType.CPU
    )
    found: dict[str, list[float]] = {name: [0.0] * steps for name, _ in classes}
    found["other"] = [0.0] * steps
    for timed in _timed(events, device, classes):
        place = bisect_right(marks, timed.start) - 1
        if place >= 0 and timed.name != MARK:
            found[timed.kind][place] += timed.us / 1e3
    return found


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


class _Timed(NamedTuple):
    """An operator or kernel that ran: name, class, start and own time in microseconds."""

    name: str
    kind: str
    start: float
    us: float


def _activities(device: torch.device) -> list[ProfilerActivity]:
    found = [ProfilerActivity.CPU]
    return [*found, ProfilerActivity.CUDA] if device.type == "cuda" else found


def _timed(events: Any, device: torch.device, classes: Classes) -> list[_Timed]:
    """Each operator, or with CUDA each kernel."""
    if device.type == "cpu":
        return [
            _Timed(
                event.name,
                _class(event, classes),
                event.time_range.start,
                event.self_cpu_time_total,
            )
            for event in events
            if event.device_type == DeviceType.CPU
        ]
    launched = {}
    for event in events:
        if event.device_type == DeviceType.CPU:
            for kernel in event.kernels:
                launched[kernel.name, kernel.duration] = _class(event, classes)
    found = []
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            us = event.self_device_time_total
            kind = _class_of_name(event.name, classes)
            if kind == "other":
                kind = launched.get((event.name, us), "other")
            found.append(_Timed(event.name, kind, event.time_range.start, us))
    return found


def _class(event: Any, classes: Classes) -> str:
    """Of the outermost of an operator's callers that has one, else its own."""
    found = "other"
    while event is not None:
        kind = _class_of_name(event.name, classes)
        found = found if kind == "other" else kind
        event = event.cpu_parent
    return found


def _class_of_name(name: str, classes: Classes) -> str:
    lowered = name.lower()
    for kind, words in classes:
        if any(word in lowered for word in words):
            return kind
    return "other"
