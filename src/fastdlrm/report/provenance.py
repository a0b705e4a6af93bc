"""Where results come from: the machine, code and settings that stand beside every chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.bench_result import BenchResult
from fastdlrm.contracts.host import Fact
from fastdlrm.report.charts import COLORS

BUSY_LOAD = 0.5
"""Load average from which a machine counts as shared."""


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
    told = [_told(source.result) for source in sources]
    machines = [machine(source.result) for source in sources]
    is_shared = len(sources) > 1 and len(set(machines)) == 1
    names: list[list[str]] = [[] if is_shared else [name] for name in machines]
    for fact in dict.fromkeys(fact for each in told for fact in each):
        more = [[*name, each.get(fact, "")] for name, each in zip(names, told, strict=True)]
        if _num_different(more) > _num_different(names):
            names = [list(filter(None, name)) for name in more]
    names = [
        [*name, str(source.path)] if names.count(name) > 1 or not name else name
        for name, source in zip(names, sources, strict=True)
    ]
    return [
        Named(name=", ".join(name), color=COLORS[i % len(COLORS)], result=source.result)
        for i, (name, source) in enumerate(zip(names, sources, strict=True))
    ]


def _num_different(names: Sequence[Sequence[str]]) -> int:
    return len(set(map(tuple, names)))


def _told(result: BenchResult) -> dict[str, str]:
    """What tells results of one machine apart, what is looked at first first, in words."""
    facts = described(result)
    words = {
        "threads": threads_text(result.host.num_threads),
        "device": facts["device"],
        "precision": facts["precision"],
        "tables": f"tables {facts['tables']}",
        "float32 products": f"products {facts['float32 products']}",
    }
    for name, value in result.settings.items():
        if isinstance(value, str | int | float):
            words[name] = f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
    return {**words, "commit": commit_text(result.commit)}


def commit_text(commit: str) -> str:
    """A commit in words."""
    return f"commit {short_commit(commit) or 'unknown'}"


def short_commit(commit: str) -> str:
    """Its first digits, and the sign of a tree that differs from it."""
    return commit[:12] + "+" * commit.endswith("+")


def threads_text(number: int) -> str:
    """Threads that computed."""
    return "1 thread" if number == 1 else f"{number} threads"


def model_text(result: BenchResult) -> str:
    """Model and scale."""
    return f"{result.model}, rows_scale {result.rows_scale:g}"


def context(group: Group) -> str:
    """What stands under each chart of a group: model, scale, machines, commits, days."""
    told = []
    for one in group:
        result, computed = one.result, machine(one.result)
        name = one.name if computed in one.name else f"{one.name}: {computed}"
        facts = [result.device, threads_text(result.host.num_threads), commit_text(result.commit)]
        known = one.name.split(", ")
        more = [fact for fact in facts if fact not in known]
        told.append(", ".join([name, *more, result.started[:10]]))
    return f"{model_text(group[0].result)}. {'; '.join(told)}."


def notes(group: Group) -> list[str]:
    """What the results say of themselves, and which were measured on a shared machine.

    What not all of a group say has the name of who says it.
    """
    told: dict[str, list[str]] = {}
    for one in group:
        load = one.result.host.load_average
        is_busy = load > BUSY_LOAD
        busy = [f"{load:g} other processes ran when it began: a shared machine"] * is_busy
        for note in [*busy, *one.result.notes]:
            told.setdefault(note, []).append(one.name)
    return [
        note if len(names) == len(group) else f"{'; '.join(names)}: {note}"
        for note, names in told.items()
    ]


def machine(result: BenchResult) -> str:
    """What computed: the GPU, or the processor and its cores."""
    found = result.host.host
    if result.device == "cuda" and found.gpus:
        return found.gpus[0].name
    return f"{found.cpu_model.value or 'unknown processor'}, {said(found.num_usable_cores)} cores"


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
