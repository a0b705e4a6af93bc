"""Where results come from: the machine, code and settings that stand beside every chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.bench_result import BenchResult
from fastdlrm.contracts.host import Fact, Fingerprint
from fastdlrm.report.charts import COLORS

BUSY_LOAD = 0.5
"""Load average from which a machine counts as shared."""

_TOLD = ("threads", "device", "precision", "tables", "float32 products", "commit", "effort")
"""What tells results of one machine apart, the first that differ first."""


@dataclass(frozen=True, slots=True)
class Source:
    """A result and the file it was read from."""

    path: Path
    result: BenchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A result of a group that is drawn together.

    Attributes:
        name: Unlike that of the others.
        color: Of its series.
        result: What was measured.
    """

    name: str
    color: str
    result: BenchResult


Group = Sequence[Named]


def groups(sources: Sequence[Source]) -> list[Group]:
    """Results of one benchmark, those of one model and scale together, in the order given."""
    found: dict[bytes, list[Source]] = {}
    for source in sources:
        result = source.result
        parts = [result.config.get(name) for name in ("data", "model", "random")]
        key = msgspec.json.encode([result.model, result.rows_scale, parts], order="sorted")
        found.setdefault(key, []).append(source)
    return [_named(group) for group in found.values()]


def _named(sources: Sequence[Source]) -> Group:
    told = [described(source.result) for source in sources]
    names = [[machine(source.result)] for source in sources]
    for fact in _TOLD:
        if len({tuple(name) for name in names}) == len(names):
            break
        if len({each[fact] for each in told}) > 1:
            for name, each in zip(names, told, strict=True):
                name.append(_short(fact, each[fact]))
    for name, source in zip(names, sources, strict=True):
        if names.count(name) > 1:
            name.append(str(source.path))
    return [
        Named(name=", ".join(name), color=COLORS[i % len(COLORS)], result=source.result)
        for i, (name, source) in enumerate(zip(names, sources, strict=True))
    ]


def _short(fact: str, value: str) -> str:
    if fact == "commit":
        return f"commit {value[:12]}"
    return value if fact in ("device", "precision") else f"{fact} {value}"


def model_text(result: BenchResult) -> str:
    """Model and scale."""
    return f"{result.model}, rows_scale {result.rows_scale:g}"


def context(group: Group) -> str:
    """What stands under each chart of a group: model, scale, machines, commits, days."""
    told = [
        f"{one.name}: {one.result.device}, {one.result.host.num_threads} threads, "
        f"commit {one.result.commit[:12] or 'unknown'}, {one.result.started[:10]}"
        for one in group
    ]
    return f"{model_text(group[0].result)}. {'; '.join(told)}."


def notes(group: Group) -> list[str]:
    """What the results say of themselves, and which were measured on a shared machine."""
    found: dict[str, None] = {}
    for one in group:
        prefix = f"{one.name}: " if len(group) > 1 else ""
        load = one.result.host.load_average
        if load > BUSY_LOAD:
            found[f"{prefix}{load:g} other processes ran when it began: a shared machine"] = None
        for note in one.result.notes:
            found[note] = None
    return list(found)


def machine(result: BenchResult) -> str:
    """What computed: the GPU, or the processor and its cores."""
    found = result.host.host
    if result.device == "cuda" and found.gpus:
        return found.gpus[0].name
    return f"{found.cpu_model.value or 'unknown processor'}, {said(found.num_usable_cores)} cores"


def host_text(host: Fingerprint) -> str:
    """The machine in a line."""
    found = host.host
    name = found.cpu_model.value or "unknown processor"
    gpus = "".join(f", {gpu.name}" for gpu in found.gpus)
    copies = host.copy_gb_s.items()
    speeds = ", ".join(f"{device} copies {speed:g} GB/s" for device, speed in copies)
    return f"{name}, {found.num_cores.value} cores{gpus}, {speeds}, load {host.load_average:g}"


def differences(results: Sequence[BenchResult]) -> dict[str, tuple[str, ...]]:
    """What is not the same in all results."""
    told = [described(result) for result in results]
    return {
        name: tuple(each[name] for each in told)
        for name in told[0]
        if len({each[name] for each in told}) > 1
    }


def described(result: BenchResult) -> dict[str, str]:
    """A result's machine, code and settings, by name."""
    host = result.host
    train: dict[str, Any] = result.config.get("train", {})
    return {
        "processor": said(host.host.cpu_model),
        "cores": said(host.host.num_usable_cores),
        "threads": str(host.num_threads),
        "smt": said(host.smt),
        "governor": said(host.governor),
        "GPU": ", ".join(gpu.name for gpu in host.host.gpus) or "none",
        "device": result.device,
        "precision": str(train.get("precision")),
        "tables": str(train.get("table_dtype")),
        "float32 products": result.matmul,
        "commit": result.commit or "unknown",
        "versions": ", ".join(f"{name} {version}" for name, version in host.versions.items()),
        "effort": msgspec.json.encode(result.effort).decode(),
    }


def said(fact: Fact) -> str:
    """A fact, or why there is none."""
    return fact.reason if fact.value is None else str(fact.value)
