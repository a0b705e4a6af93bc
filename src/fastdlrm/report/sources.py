"""What a report is made of: results of benchmarks, training runs, studies, evaluations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.bench_result import BenchResult, read_result
from fastdlrm.contracts.manifest import RunManifest, read_manifest
from fastdlrm.contracts.record import RECORDS, Record, read_records
from fastdlrm.contracts.study import STUDY, StudyResult, read_study
from fastdlrm.errors import DataError
from fastdlrm.metrics.eval_result import KIND, EvalResult, read_eval_result
from fastdlrm.metrics.values import MetricValues, is_better
from fastdlrm.report.provenance import Source

CONCLUSIONS = {
    "roofline": "roofline",
    "colocate": "colocation",
    "latency-bounded": "latency_bounded",
}
"""Where a benchmark's result holds what its charts are of, besides measurements."""


@dataclass(frozen=True, slots=True)
class Validation:
    """An evaluation in a run.

    Attributes:
        step: Optimizer steps done.
        num_samples: Trained on so far.
        values: What was found.
    """

    step: int
    num_samples: int
    values: MetricValues


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run's folder.

    Attributes:
        path: The folder.
        manifest: What made it.
        records: Of training, by ascending step.
        validations: By ascending step.
    """

    path: Path
    manifest: RunManifest
    records: Sequence[Record]
    validations: Sequence[Validation]

    @property
    def train(self) -> dict[str, Any]:
        """The config's section of that name."""
        return dict(self.manifest.config["train"])

    def num_samples(self, step: int) -> int:
        """Trained on after a step; an epoch's last, smaller batch counts as a whole one."""
        return step * int(self.train["global_batch_size"])

    @property
    def best(self) -> Validation | None:
        """The evaluation that the config's best_metric picks."""
        metric, best, chosen = self.train["best_metric"], None, None
        for one in self.validations:
            value = getattr(one.values, metric)
            if value is not None and is_better(metric, value, best):
                best, chosen = value, one
        return chosen


@dataclass(frozen=True, slots=True)
class Study:
    """A study's folder.

    Attributes:
        path: The folder.
        result: What it found so far.
    """

    path: Path
    result: StudyResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All that was read, by kind, in the order given."""

    results: Sequence[Source]
    runs: Sequence[TrainingRun]
    evaluations: Sequence[EvalResult]
    studies: Sequence[Study] = ()


def read_sources(paths: Iterable[Path]) -> Sources:
    """Read results of `fastdlrm bench` and `fastdlrm eval --out`, folders of runs and studies.

    Raises:
        DataError: One of them cannot be read, or is named twice.
    """
    results, runs, evaluations, studies = [], [], [], []
    seen: dict[Path, Path] = {}
    for path in paths:
        if (first := seen.setdefault(path.resolve(), path)) is not path:
            raise DataError(f"{path}: the same as {first}; name it once")
        if (path / STUDY).is_file():
            studies.append(Study(path, read_study(path)))
        elif path.is_dir():
            runs.append(read_run(path))
        elif _kind(path) == KIND:
            evaluations.append(read_eval_result(path))
        else:
            results.append(Source(path, _read_result(path)))
    return Sources(results=results, runs=runs, evaluations=evaluations, studies=studies)


def _read_result(path: Path) -> BenchResult:
    result = read_result(path)
    part = CONCLUSIONS.get(result.benchmark)
    if part is not None and getattr(result, part) is None:
        raise DataError(
            f"{path}: a result of `fastdlrm bench {result.benchmark}` without {part!r}, its "
            "conclusion; run the benchmark again"
        )
    return result


def read_run(folder: Path) -> TrainingRun:
    """Read a run's manifest and records; it may still be training.

    Raises:
        DataError: It is no run, has no records yet, or is damaged.
    """
    manifest, records = read_manifest(folder, RunManifest), read_records(folder)
    run = TrainingRun(folder, manifest, [r for r in records if r.kind == "train"], [])
    try:
        found = [
            Validation(r.step, run.num_samples(r.step), msgspec.convert(r.values, MetricValues))
            for r in records
            if r.kind == "validation"
        ]
    except msgspec.ValidationError as problem:
        raise DataError(
            f"{folder / RECORDS}: a validation record lacks a metric: {problem}; train again with "
            "this version"
        ) from problem
    return TrainingRun(folder, manifest, run.records, found)


def _kind(path: Path) -> object:
    """What a file says it is; None where it says nothing that can be read."""
    try:
        head = msgspec.json.decode(path.read_bytes()) if path.is_file() else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # whoever reads it as what it should be says what is wrong
    return head.get("kind") if isinstance(head, dict) else None
