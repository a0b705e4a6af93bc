"""What was measured -> a BenchResult, with all that it says of model, machine and code."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fastdlrm import __version__
from fastdlrm.bench.fingerprint import fingerprint
from fastdlrm.bench.measure import Timed, summarise
from fastdlrm.bench.models import BenchModel
from fastdlrm.config import to_tree
from fastdlrm.contracts.bench_result import BenchResult, Effort, Measurement
from fastdlrm.contracts.manifest import source_commit


class Start(NamedTuple):
    """When measuring began.

    Attributes:
        time: Date and time, UTC.
        load_average: Runnable processes over the minute before.
    """

    time: str
    load_average: float


def start() -> Start:
    """Now."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Start(time, round(os.getloadavg()[0], 2))


def measurement(key: dict[str, str], timed: Timed, num_rows: int = 0) -> Measurement:
    """Samples with what they say.

    Args:
        key: Of the measurement.
        timed: In milliseconds a call.
        num_rows: A call computes; 0: it is no call of its own.
    """
    summary = summarise(timed.rounds)
    return Measurement(
        key=key,
        unit="ms",
        rounds=timed.rounds,
        stopped=timed.stopped,
        summary=summary,
        samples_per_s=num_rows / summary.median * 1e3 if num_rows else None,
    )


def result_of(
    benchmark: str,
    model: BenchModel,
    *,
    started: Start,
    matmul: str,
    effort: Effort,
    settings: dict[str, Any],
    measurements: Sequence[Measurement],
    notes: Sequence[str] = (),
) -> BenchResult:
    """A result; the machine is looked at now, after the measurements.

    Args:
        benchmark: The sub-command.
        model: What was measured.
        started: When.
        matmul: How float32 products were computed.
        effort: That was made.
        settings: The sub-command's own.
        measurements: What was found.
        notes: What a reader should know besides.
    """
    return BenchResult(
        benchmark=benchmark,
        created_by=__version__,
        commit=source_commit(),
        started=started.time,
        model=model.name,
        rows_scale=model.rows_scale,
        config=to_tree(model.recipe),
        settings=settings,
        device=model.device.type,
        matmul=matmul,
        effort=effort,
        host=fingerprint(model.device, started.load_average),
        measurements=tuple(measurements),
        notes=tuple(notes),
    )
