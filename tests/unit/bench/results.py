"""Results made by hand."""

import msgspec
import torch

from fastdlrm.bench.fingerprint import fingerprint
from fastdlrm.bench.measure import Timed
from fastdlrm.bench.result import measurement
from fastdlrm.contracts.bench_result import BenchResult, Measurement
from tests.unit.report.planted import result


def made(times: dict[str, tuple[float, ...]], **changes: object) -> BenchResult:
    """A result with these milliseconds by batch size, in five rounds."""
    found = [
        measurement({"batch_size": size}, Timed(_rounds(values), "time"), _num_rows(size, values))
        for size, values in times.items()
    ]
    here = {"host": fingerprint(torch.device("cpu"), 0.0), "commit": "abc", "notes": ()}
    return result(found, **here | changes)


def _num_rows(size: str, values: tuple[float, ...]) -> int:
    """Of a call; 0, no call of its own, where no time passed."""
    return int(size) if min(values) > 0 else 0


def _rounds(values: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    size = len(values) // 5
    return tuple(values[size * r : size * (r + 1)] for r in range(5))


def planted(key: dict[str, str], ms: float, **work: float) -> Measurement:
    """A measurement of which every sample takes as long; `work` is its FLOPs and bytes."""
    return msgspec.structs.replace(measurement(key, Timed(((ms,) * 3,) * 3, "time")), **work)


def ceilings() -> list[Measurement]:
    """Of a machine of 100 GFLOP/s in fp32, 200 in bf16 and 400 in int8; memory 12 GB/s, its cache
    100 GB/s; rows 5 GB/s."""

    def one(name: str, of: str, ms: float, **work: float) -> Measurement:
        return planted({"ceiling": name, "of": of}, ms, **work)

    return [
        one("copy", "memory", 100, num_bytes=1e9),  # 10 GB/s
        one("triad", "memory", 125, num_bytes=1.5e9),
        one("copy", "1 MiB", 0.01, num_bytes=1e6),
        one("gather", "summed", 1, num_bytes=5e6),
        one("gather", "copied", 1, num_bytes=4e6),
        one("gemm fp32", "large 8 x 8 x 8", 1, flop=1e8),
        one("gemm fp32", "forward 2 x 3 x 4", 1, flop=5e7),
        one("gemm bf16", "large 8 x 8 x 8", 1, flop=2e8),
        one("gemm bf16", "forward 2 x 3 x 4", 4, flop=5e7),
        one("gemm int8", "large 8 x 8 x 8", 1, flop=4e8),
    ]


def step(kind: str, batch_size: int, ms: float, **operators: float) -> list[Measurement]:
    """A step whose operators take so many milliseconds, 0 unless given.

    Of work fc has 4e8 FLOPs and 1e6 bytes a 64 samples, embedding_bag 1.2e7 bytes of which 1e7 are
    rows, and interaction 2e8 FLOPs and 2.4e9 bytes.
    """
    scale = batch_size / 64
    work = {
        "fc": {"flop": 4e8, "num_bytes": 1e6, "gathered_bytes": 0},
        "embedding_bag": {"flop": 1e6, "num_bytes": 1.2e7, "gathered_bytes": 1e7},
        "interaction": {"flop": 2e8, "num_bytes": 2.4e9, "gathered_bytes": 0},
        "other": {},
    }
    total = {
        name: scale * sum(each.get(name, 0) for each in work.values())
        for name in ("flop", "num_bytes", "gathered_bytes")
    }

    def one(name: str, ms: float, found: dict[str, float]) -> Measurement:
        key = {"pass": kind, "batch_size": str(batch_size), "operator": name}
        return planted(key, ms, **found)

    parts = [
        one(name, operators.get(name, 0.0), {field: scale * value for field, value in each.items()})
        for name, each in work.items()
    ]
    return [one("step", ms, total), *parts]
