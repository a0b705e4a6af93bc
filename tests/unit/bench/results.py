"""Results made by hand."""

import msgspec
import torch

from fastdlrm.bench.fingerprint import fingerprint
from fastdlrm.bench.measure import Timed
from fastdlrm.bench.result import measurement
from fastdlrm.contracts.bench_result import BenchResult, Effort


def made(times: dict[str, tuple[float, ...]], **changes: object) -> BenchResult:
    """A result with these milliseconds by batch size, in five rounds."""
    host = fingerprint(torch.device("cpu"), 0.0)
    result = BenchResult(
        benchmark="batch",
        created_by="0",
        commit="abc",
        started="2026-01-01T00:00:00+00:00",
        model="rmc1",
        rows_scale=0.5,
        config={"model": {"embedding_dim": 32}, "train": {"precision": "fp32"}},
        settings={},
        device="cpu",
        matmul="default",
        effort=Effort(),
        host=host,
        measurements=tuple(
            measurement(
                {"batch_size": size}, Timed(_rounds(values), "time"), _num_rows(size, values)
            )
            for size, values in times.items()
        ),
    )
    return msgspec.structs.replace(result, **changes)


def _num_rows(size: str, values: tuple[float, ...]) -> int:
    """Of a call; 0, no call of its own, where no time passed."""
    return int(size) if min(values) > 0 else 0


def _rounds(values: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    size = len(values) // 5
    return tuple(values[size * r : size * (r + 1)] for r in range(5))
