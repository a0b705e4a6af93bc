"""What a benchmark leaves: what was run, where, and every raw sample.

RESULT.json   one BenchResult
"""

from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.colocation import Colocation
from fastdlrm.contracts.host import Fact, Fingerprint
from fastdlrm.contracts.latency_bounded import LatencyBounded
from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.contracts.roofline import Roofline
from fastdlrm.errors import DataError

KIND = "bench"
VERSION = 1


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How long to measure."""

    warmup_s: float = 0.5
    """Before the first sample of each measurement."""
    seconds: float = 3.0
    """Of one measurement, at most, unless it has too few samples by then."""
    spread: float = 0.01
    """Stop once the median's interval (95 %) reaches no further from it than this share of it."""
    min_samples: int = 100
    num_rounds: int = 5
    """Each measurement has its turn so many times: what else the machine does hits all alike."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What samples say; percentiles are samples that were measured."""

    num_samples: int
    median: float
    low: float
    """Of the median's bootstrap interval, 95 %, in blocks of a round."""
    high: float
    p95: float | None
    """None where there are fewer than 20 samples."""
    p99: float | None
    """None where there are fewer than 100 samples."""
    mean: float | None = None
    """None in results written before it was kept."""
    p5: float | None = None
    """None where there are fewer than 20 samples."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One thing measured, again and again."""

    key: dict[str, str]
    """What sets it apart in its result; the same key in two results is the same measurement."""
    unit: str
    """Of the samples."""
    rounds: tuple[tuple[float, ...], ...]
    """The samples, in the order in which they came, by round."""
    stopped: str
    """Why there are no more: "spread", "time" or "samples"."""
    summary: Summary
    samples_per_s: float | None = None
    """Rows (inference samples, not samples of time) a second at the median; of several jobs at
    once, of all together."""
    flop: float | None = None
    """Counted from the shape; None where it is not counted."""
    num_bytes: float | None = None
    """Moved if nothing stays in a cache but the weights of a layer, counted from the shape."""
    gathered_bytes: float | None = None
    """Of `num_bytes`, rows of tables at places that ids name, and those ids."""
    counters: dict[str, Fact] = {}
    """Hardware counters a step, or why there are none."""
    num_by_job: tuple[tuple[int, ...], ...] = ()
    """Of several jobs at once: how many samples of each round are the first's, the second's, ...:
    a round holds them job by job."""

    @property
    def fastest_round(self) -> float:
        """The median of the fastest round: what is kept up while nothing disturbs it."""
        return min(sorted(samples)[len(samples) // 2] for samples in self.rounds)

    @property
    def giga_per_s(self) -> float:
        """10^9 FLOPs a second in the fastest round, of what has none bytes; of milliseconds."""
        return (self.flop or self.num_bytes or 0.0) / self.fastest_round / 1e6


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A run of `fastdlrm bench`."""

    kind: str = KIND
    version: int = VERSION
    benchmark: str
    """The sub-command."""
    created_by: str
    """Package version."""
    commit: str
    """Of the source tree; empty where it is not one."""
    started: str
    """Date and time, UTC."""
    model: str
    """Preset, or path of a config file."""
    rows_scale: float
    """By which the preset's tables were made shorter; 1: as published."""
    config: dict[str, Any]
    """The resolved config, tables as they were."""
    settings: dict[str, Any]
    """The sub-command's own."""
    device: str
    """cpu or cuda."""
    matmul: str
    """How float32 products were computed."""
    effort: Effort
    host: Fingerprint
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know besides."""
    roofline: Roofline | None = None
    """What the measurements of `bench roofline` say."""
    latency_bounded: LatencyBounded | None = None
    """What `latency-bounded` found."""
    colocation: Colocation | None = None
    """What `colocate` concludes."""


def write_result(path: Path, result: BenchResult) -> None:
    """Write a result, atomically.

    Raises:
        DataError: The path is a folder.
    """
    if path.is_dir():
        raise DataError(f"{path}: a folder; name the JSON file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read_result(path: Path) -> BenchResult:
    """Read and check a result.

    Raises:
        DataError: There is no such file, or it is no result of this version.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a result written by `fastdlrm bench`")
    content = path.read_bytes()
    try:
        head = msgspec.json.decode(content)
        found = (head.get("kind"), head.get("version")) if isinstance(head, dict) else None
        if found != (KIND, VERSION):
            raise DataError(
                f"{path}: kind and version are {found}, wanted {(KIND, VERSION)}; name a result "
                "written by `fastdlrm bench` of this version"
            )
        return msgspec.json.decode(content, type=BenchResult)
    except msgspec.MsgspecError as problem:
        raise DataError(f"{path}: damaged: {problem}; run the benchmark again") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: no JSON text: {problem}; run the benchmark again") from problem
