"""Two results or more side by side: machines, versions or settings.

Ratios are of medians, to the first result. Their intervals hold for the noise within each run, in
blocks of a round; what differs between runs of the same code on the same machine (where memory came
to lie, what else ran) is not in them, so differences below `noise` count as none too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from fastdlrm.bench.measure import block_of, median, values_of
from fastdlrm.contracts.bench_result import BenchResult, Measurement
from fastdlrm.errors import DataError
from fastdlrm.report.provenance import BUSY_LOAD, differences
from fastdlrm.stats import bootstrap_ratio_interval

Verdict = Literal["faster", "slower", "no difference"]
NOISE = 0.02
"""Least difference that counts unless another is given."""


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement of another result, over that of the first."""

    result: int
    """Of the compared ones, by place; the first is 0."""
    ratio: float
    """Of the medians; below 1 this one takes less time."""
    low: float
    """Of its bootstrap interval, 95 %."""
    high: float
    verdict: Verdict


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement that all results have."""

    key: dict[str, str]
    unit: str
    medians: tuple[float, ...]
    ratios: tuple[Ratio, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Results side by side."""

    files: tuple[str, ...]
    benchmark: str
    model: str
    rows_scale: float
    noise: float
    differences: dict[str, tuple[str, ...]]
    """What differs in machine, code or settings, by name, as each result says."""
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    """Measurements that not all have, or whose median is 0."""
    warnings: tuple[str, ...]
    """Why the ratios may say nothing of the code."""


def compare(
    paths: Sequence[Path], results: Sequence[BenchResult], noise: float = NOISE
) -> Comparison:
    """Compare results of one benchmark of one model.

    Args:
        paths: Where they were read.
        results: Two or more.
        noise: Least difference of medians that counts, as a share.

    Raises:
        DataError: They are of different benchmarks, models or scales, or have no measurement in
            common.
    """
    first = results[0]
    for path, result in zip(paths[1:], results[1:], strict=True):
        _require_same(paths[0], first, path, result)
    found = [{_name(m.key): m for m in result.measurements} for result in results]
    names = list(dict.fromkeys(name for each in found for name in each))
    rows, left_out = [], []
    for name in names:
        group = [each[name] for each in found if name in each]
        if len(group) == len(results) and all(m.summary.median > 0 for m in group):
            rows.append(_row(group, noise))
        else:
            left_out.append(name)
    if not rows:
        raise DataError(
            f"{' and '.join(map(str, paths))}: no measurement in common; run both with the same "
            "--batches"
        )
    return Comparison(
        files=tuple(map(str, paths)),
        benchmark=first.benchmark,
        model=first.model,
        rows_scale=first.rows_scale,
        noise=noise,
        differences=differences(results),
        rows=tuple(rows),
        left_out=tuple(left_out),
        warnings=tuple(
            f"{path}: {result.host.load_average:g} other processes ran when it began; its times "
            "are those of a shared machine"
            for path, result in zip(paths, results, strict=True)
            if result.host.load_average > BUSY_LOAD
        ),
    )


def verdict(low: float, high: float, ratio: float, noise: float) -> Verdict:
    """What a ratio of times and its interval say.

    Args:
        low: Of the interval.
        high: Of the interval.
        ratio: Of times, to the first.
        noise: Least difference that counts.
    """
    if low <= 1 <= high or abs(ratio - 1) <= noise:
        return "no difference"
    return "faster" if ratio < 1 else "slower"


def _require_same(first_path: Path, first: BenchResult, path: Path, result: BenchResult) -> None:
    wanted = (first.benchmark, first.model, first.rows_scale)
    found = (result.benchmark, result.model, result.rows_scale)
    if found != wanted:
        raise DataError(
            f"{path}: benchmark, model and rows_scale are {found}, those of {first_path} are "
            f"{wanted}; compare results of the same"
        )
    sections = ("data", "model", "random")
    parts = [name for name in sections if first.config.get(name) != result.config.get(name)]
    if parts:
        raise DataError(
            f"{path}: sections {parts} of the config differ from those of {first_path}; "
            "measure the same model, with the same --set"
        )


def _row(group: Sequence[Measurement], noise: float) -> Row:
    ratios = []
    for place, other in enumerate(group[1:], 1):
        ratio = other.summary.median / group[0].summary.median
        blocks = block_of(other.rounds), block_of(group[0].rounds)
        low, high = bootstrap_ratio_interval(
            values_of(other.rounds), values_of(group[0].rounds), median, blocks=blocks
        )
        said = verdict(low, high, ratio, noise)
        ratios.append(
            Ratio(
                result=place,
                ratio=ratio,
                low=low,
                high=high,
                verdict=_of_rate(said) if group[0].unit.endswith("/s") else said,
            )
        )
    return Row(
        key=group[0].key,
        unit=group[0].unit,
        medians=tuple(m.summary.median for m in group),
        ratios=tuple(ratios),
    )


def _of_rate(said: Verdict) -> Verdict:
    """A verdict on times as one on rates, of which more is faster."""
    swapped: dict[Verdict, Verdict] = {"faster": "slower", "slower": "faster"}
    return swapped.get(said, said)


def _name(key: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in key.items())
