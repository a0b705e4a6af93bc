"""Runs of counts."""

from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.hashing import mix
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.data.counts import TrainSpan, read_run, read_texts, write_run
from fastdlrm.data.split import resolve_splits
from tests.staging import NONE, sparse, staged


def written(folder: Path, key: str, values: pa.Array, memory_bytes: int = 1 << 24) -> Path:
    """A run of one feature's values, given in two pieces."""
    half = len(values) // 2
    with duckdb.connect() as connection:
        write_run(
            folder / "run",
            [sparse("a", key)],
            lambda column: iter([values[:half], values[half:]]),
            edges={},
            connection=connection,
            memory_bytes=memory_bytes,
        )
    return folder / "run"


def pairs(run: Path, low: int = 0, last: int = 2**64 - 1) -> list[tuple[int, int]]:
    """Keys and counts in the order of the file."""
    return [
        pair
        for keys, counts in read_run(run, low, last)
        for pair in zip(keys.tolist(), counts.tolist(), strict=True)
    ]


@pytest.mark.parametrize("memory_bytes", [1 << 24, 1 << 17])
def test_a_run_holds_every_key_in_mixed_order(tmp_path: Path, memory_bytes: int) -> None:
    drawn = np.random.default_rng(1).integers(0, 5000, 20_000).astype(np.uint64)
    run = written(tmp_path, "hex", pa.array(drawn), memory_bytes)
    found = pairs(run)
    assert dict(found) == Counter(drawn.tolist())
    assert len(found) == len(dict(found))
    places = [mix(key) for key, _ in found]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("low", "last"), [(0, 2**62), (2**62 + 1, 2**63), (2**63, 2**64 - 1), (5, 5)]
)
def test_a_range_of_a_run_is_one_piece(tmp_path: Path, low: int, last: int) -> None:
    run = written(tmp_path, "hex", pa.array(range(1000), pa.uint64()))
    expected = [pair for pair in pairs(run) if low <= mix(pair[0]) <= last]
    assert pairs(run, low, last) == expected
    assert (len(expected) > 200) == (last - low > 2**61)
    # Bounds that are mixed keys themselves.
    places = [mix(key) for key, _ in pairs(run)]
    assert pairs(run, places[10], places[20]) == pairs(run)[10:21]


def test_no_values_are_an_empty_run(tmp_path: Path) -> None:
    run = written(tmp_path, "hex", pa.array([None, None], pa.uint64()))
    assert pairs(run) == []
    run = written(tmp_path, "string", pa.array([None, None], pa.string()))
    assert list(read_texts(run)) == []


def test_texts_are_counted(tmp_path: Path) -> None:
    run = written(tmp_path, "string", pa.array(["x", "", None, "x", "é"]))
    found = [row for batch in read_texts(run) for row in batch.to_pylist()]
    assert {row["value"]: row["count"] for row in found} == {"x": 2, "": 1, "é": 1}


@pytest.mark.parametrize("by", ["position", "hash"])
def test_a_span_holds_its_train_rows_alone(tmp_path: Path, by: str) -> None:
    numbers = pa.array(range(100), pa.uint64())
    rows = staged(tmp_path, {"s.a": numbers, "s.b": numbers}, row_group_rows=10)
    split = SplitConfig(validation=NONE, test=Holdout(by=by, amount=0.33))  # type: ignore[arg-type]
    with duckdb.connect() as connection:
        splits = resolve_splits(rows, split, 0, connection)
    train = [int(n) for block in rows.blocks(["__label"]) for n in
             block.start + np.flatnonzero(splits.assign(block) == 0)]  # fmt: skip
    found = []
    for chunks in (rows.chunks[:3], rows.chunks[3:9], rows.chunks[9:]):
        span = TrainSpan(rows, splits, chunks)
        for _ in range(2):
            ids = [i for array in span.values("s.a") for i in array.to_pylist()]
        assert [i for array in span.values("s.b") for i in array.to_pylist()] == ids
        found += ids
    assert found == train
    assert 40 < len(train) < 100
