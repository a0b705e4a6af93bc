"""Copies of a model on one machine: what their number does to latency and throughput.

Each copy is a process with one thread, pinned to a core of its own or, where there are more copies
than cores, to one that it shares. It computes batch after batch in a closed loop. Copies of a case
start together, and calls count that end while all run. Cases take turns, round by round, in the
same processes: some run, the others wait.

Source: Gupta et al. 2019, arXiv:1906.03109, section VI.

Shapes: B batch.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from fastdlrm.bench.colocation import (
    Asked,
    Case,
    Inputs,
    cases_of,
    last_cache_bytes,
    num_copies,
    require_possible,
    require_room,
)
from fastdlrm.bench.copies import Copies, Job, Ready
from fastdlrm.bench.cores import core_order, num_physical
from fastdlrm.bench.host import usable_cores
from fastdlrm.bench.knee import Point, copies_at_sla, knee
from fastdlrm.bench.measure import Timed, block_of, median, values_of
from fastdlrm.bench.models import BenchModel, free_bytes
from fastdlrm.bench.result import measurement, result_of, start
from fastdlrm.bench.shared_tables import SharedTables, large_pages
from fastdlrm.bench.window import Window, round_s, window
from fastdlrm.config import to_tree
from fastdlrm.contracts.bench_result import BenchResult, Effort, Measurement
from fastdlrm.contracts.colocation import Colocation, Curve, Pair
from fastdlrm.errors import BenchError
from fastdlrm.stats import bootstrap_ratio_interval

P99_SAMPLES = 100
"""That a p99 asks for."""


def bench_colocate(model: BenchModel, asked: Asked, effort: Effort) -> BenchResult:
    """Measure copies of a model, and of pairs of models.

    Args:
        model: What is copied.
        asked: How many copies of what.
        effort: How long, each case.

    Raises:
        BenchError: A copy ended, or no call was finished while all ran.
        ConfigError: The copies do not fit, or cannot be what is asked.
    """
    models = [model] if asked.partner is None else [model, asked.partner]
    effort = msgspec.structs.replace(effort, min_samples=max(effort.min_samples, P99_SAMPLES))
    require_possible(model, asked)
    cache = last_cache_bytes(model.device)
    inputs = {each.name: Inputs.of(each, asked.batch_size, cache) for each in models}
    require_room(models, asked, inputs, free_bytes(model.device))
    started, matmul = start(), model.settle_products()
    cases = cases_of(model, asked)
    with ExitStack() as stack:
        shared = {
            each.name: stack.enter_context(SharedTables(each))
            for each in models
            if "shared" in asked.tables
        }
        jobs = _jobs(models, asked, inputs, shared, matmul)
        copies = stack.enter_context(Copies(jobs))
        windows = _measure(copies, cases, effort)
        ready = copies.ready
    measurements = [
        measured(case, name, found, asked.batch_size)
        for case, found in zip(cases, windows, strict=True)
        for name in case.members
    ]
    settings = _settings(models, asked, jobs, ready, inputs)
    return msgspec.structs.replace(
        result_of(
            "colocate",
            model,
            started=started,
            matmul=matmul,
            effort=effort,
            settings=settings,
            measurements=measurements,
            notes=_notes(settings),
        ),
        colocation=conclude(measurements, {each.name: asked.sla_of(each) for each in models}),
    )


def conclude(measurements: Sequence[Measurement], sla_ms: Mapping[str, float | None]) -> Colocation:
    """The knee and the SLA of each curve; a model's latency in a pair to that with itself.

    Args:
        measurements: Of `bench_colocate`.
        sla_ms: Of p99, by model; None: none.
    """
    alone: dict[tuple[str, str], dict[int, Measurement]] = {}
    paired = []
    for found in measurements:
        key = found.key
        if key["model"] == key["with"]:
            curve = alone.setdefault((key["model"], key["tables"]), {})
            curve[int(key["copies"])] = found
        else:
            paired.append(found)
    return Colocation(
        curves=tuple(_curve(*key, curve, sla_ms[key[0]]) for key, curve in alone.items()),
        pairs=tuple(
            _pair(each, alone[each.key["model"], each.key["tables"]][int(each.key["copies"])])
            for each in paired
        ),
    )


def _curve(
    model: str, tables: str, found: Mapping[int, Measurement], sla_ms: float | None
) -> Curve:
    points = [
        Point(copies, each.samples_per_s or 0.0, each.summary.median, each.summary.p99)
        for copies, each in sorted(found.items())
    ]
    bend = knee(points)
    return Curve(
        model=model,
        tables=tables,
        knee=None if bend is None else bend.copies,
        reason="" if bend is None else bend.reason,
        sla_ms=sla_ms,
        copies_at_sla=None if sla_ms is None else copies_at_sla(points, sla_ms),
    )


def _pair(found: Measurement, alone: Measurement) -> Pair:
    low, high = bootstrap_ratio_interval(
        values_of(found.rounds),
        values_of(alone.rounds),
        median,
        blocks=(block_of(found.rounds), block_of(alone.rounds)),
    )
    return Pair(
        model=found.key["model"],
        partner=found.key["with"],
        tables=found.key["tables"],
        copies=int(found.key["copies"]),
        ratio=found.summary.median / alone.summary.median,
        low=low,
        high=high,
    )


def _jobs(
    models: Sequence[BenchModel],
    asked: Asked,
    inputs: Mapping[str, Inputs],
    shared: Mapping[str, SharedTables],
    matmul: str,
) -> list[Job]:
    cores = core_order()
    slots = [
        (model, slot)
        for model, count in zip(models, num_copies(asked), strict=False)
        for slot in range(count)
    ]
    return [
        Job(
            model=model,
            number=number,
            core=cores[slot % len(cores)],
            batch_size=asked.batch_size,
            num_batches=inputs[model.name].num_batches,
            is_private="private" in asked.tables,
            shared=shared.get(model.name),
            matmul=matmul,
        )
        for number, (model, slot) in enumerate(slots)
    ]


def _measure(copies: Copies, cases: Sequence[Case], effort: Effort) -> list[list[Window]]:
    """Windows of each case, by round; cases take turns."""
    seconds = []
    for case in cases:
        stamps, _ = copies.run(case.places, case.tables, effort.warmup_s)
        slowest = max((each[-1] - each[0]) / (len(each) - 1) / 1e9 for each in stamps)
        seconds.append(round_s(float(slowest), effort))
    found: list[list[Window]] = [[] for _ in cases]
    order = list(range(len(cases)))
    for turn in range(effort.num_rounds):
        first = turn % len(cases)
        for place in order[first:] + order[:first]:
            case = cases[place]
            found[place].append(window(*copies.run(case.places, case.tables, seconds[place])))
    return found


def measured(case: Case, name: str, windows: Sequence[Window], batch_size: int) -> Measurement:
    """Of the copies of one model in a case, together.

    Args:
        case: That was run.
        name: Of the model.
        windows: By round.
        batch_size: B of each call.

    Raises:
        BenchError: None of them finished a call while all ran.
    """
    wanted = [case.places.index(place) for place in case.members[name]]
    by_round = [[found.times_ms[place] for place in wanted] for found in windows]
    rounds = tuple(tuple(float(x) for job in jobs for x in job) for jobs in by_round)
    num, seconds = sum(map(len, rounds)), sum(found.seconds for found in windows)
    others = [other for other in case.members if other != name]
    key = {
        "tables": case.tables,
        "copies": str(case.copies),
        "model": name,
        "with": others[0] if others else name,
        "batch_size": str(batch_size),
    }
    if not num:
        raise BenchError(
            f"{case.copies} copies, {case.tables} tables: none of {name} finished a call while all "
            "ran; give more --seconds or fewer --copies"
        )
    return msgspec.structs.replace(
        measurement(key, Timed(rounds, "time")),
        samples_per_s=num * batch_size / seconds,
        num_by_job=tuple(tuple(len(job) for job in jobs) for jobs in by_round),
    )


def _settings(
    models: Sequence[BenchModel],
    asked: Asked,
    jobs: Sequence[Job],
    ready: Sequence[Ready],
    inputs: Mapping[str, Inputs],
) -> dict[str, Any]:
    cores = core_order()
    partner = asked.partner
    return {
        "load": "closed loop",
        "batch_size": asked.batch_size,
        "copies": list(asked.copies),
        "tables": list(asked.tables),
        "with": None if partner is None else partner.name,
        "with_config": None if partner is None else to_tree(partner.recipe),
        "sla_ms": {model.name: asked.sla_of(model) for model in models},
        "num_cores": usable_cores(),
        "num_physical_cores": num_physical(cores),
        "jobs": [
            {"model": job.model.name, "cores": list(found.cores), "threads": found.num_threads}
            for job, found in zip(jobs, ready, strict=True)
        ],
        "table_bytes": {model.name: model.table_bytes for model in models},
        "touched_bytes": {name: found.touched_bytes for name, found in inputs.items()},
        "last_cache_bytes": last_cache_bytes(models[0].device),
        "large_pages": large_pages(),
    }


def _notes(settings: Mapping[str, Any]) -> list[str]:
    notes = [
        "closed loop: each copy computes the next batch when one is done; calls count that end "
        "while all copies run; samples/s are of all copies of a row"
    ]
    num_cores, physical = settings["num_cores"], settings["num_physical_cores"]
    crowded = [str(n) for n in settings["copies"] if n > num_cores]
    if crowded:
        notes.append(f"oversubscribed: {', '.join(crowded)} copies take turns on {num_cores} cores")
    if any(physical < n <= num_cores for n in settings["copies"]):
        notes.append(f"more than {physical} copies share physical cores (SMT)")
    cache = settings["last_cache_bytes"]
    for name, num_bytes in settings["table_bytes"].items():
        touched = min(settings["touched_bytes"][name], num_bytes)
        if cache is None:
            notes.append(f"{name}: whether its tables exceed the last cache is unknown")
        elif touched <= cache:
            notes.append(
                f"{name}: a copy's tables are {num_bytes / 2**20:,.0f} MiB, of which its batches "
                f"read {touched / 2**20:,.0f}; the last cache, of {cache / 2**20:,.0f}, can hold "
                "that: rows come from memory only as far as other copies take its room"
            )
    pages = settings["large_pages"]
    if len(settings["tables"]) > 1 and pages["private"] != pages["shared"]:
        notes.append(
            f"large pages are set to {pages['private']!r} for private tables and to "
            f"{pages['shared']!r} for shared ones: part of their difference is the pages'"
        )
    return notes
