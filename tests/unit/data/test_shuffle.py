from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.data.shuffle import PartPlan, SpoolWriter, load_part

SCHEMA = pa.schema(
    [
        ("label", pa.uint8()),
        ("row", pa.float32()),
        ("id", pa.uint32()),
        ("bag", pa.list_(pa.uint16())),
        ("bag.weights", pa.list_(pa.float32())),
    ]
)


def encoded(start: int, stop: int) -> pa.RecordBatch:
    """Rows that tell their number in every column."""
    rows = range(start, stop)
    return pa.record_batch(
        [
            pa.array([row % 2 for row in rows], pa.uint8()),
            pa.array(rows, pa.float32()),
            pa.array([3 * row for row in rows], pa.uint32()),
            pa.array([[row % 1000] * (row % 4) for row in rows], pa.list_(pa.uint16())),
            pa.array([[row / 2] * (row % 4) for row in rows], pa.list_(pa.float32())),
        ],
        schema=SCHEMA,
    )


def shuffled(
    folder: Path,
    split: np.ndarray,
    *,
    shuffle: bool = True,
    seed: int = 0,
    rows_per_part: int = 100,
    block_rows: int = 64,
    span_blocks: int = 3,
    buffer_bytes: int = 1 << 20,
) -> dict[str, pa.RecordBatch]:
    """Scatter and gather all rows; the parts by path."""
    folder.mkdir()
    num_rows = np.bincount(split, minlength=3)
    plan = PartPlan.of(num_rows, 10.0, shuffle=shuffle, seed=seed, part_bytes=10 * rows_per_part)
    ranks = np.zeros(3, np.int64)
    spools = []
    for first in range(0, len(split), block_rows * span_blocks):
        spools.append(folder / f"{first}.spool")
        with SpoolWriter(spools[-1], len(plan), buffer_bytes) as spool:
            span = split[first : first + block_rows * span_blocks]
            for start in range(first, first + len(span), block_rows):
                block = span[start - first : start - first + block_rows]
                parts = plan.parts_of(block, start, ranks)
                spool.append(encoded(start, start + len(block)), parts)
                ranks += np.bincount(block, minlength=3)
    return {plan.path(part): load_part(spools, SCHEMA, plan, part) for part in range(len(plan))}


def numbers(parts: dict[str, pa.RecordBatch], split: str = "train") -> list[int]:
    """Row numbers of a split in the order of its parts."""
    found = [parts[path].column("row").to_pylist() for path in sorted(parts) if split in path]
    return [int(row) for part in found for row in part]


ALL_TRAIN = np.zeros(1000, np.uint8)


def test_a_permutation_of_whole_rows(tmp_path: Path) -> None:
    parts = shuffled(tmp_path / "a", ALL_TRAIN)
    assert sorted(parts) == [f"train/part-{part:05d}.arrow" for part in range(10)]
    order = numbers(parts)
    assert order != sorted(order)
    assert sorted(order) == list(range(1000))
    whole = encoded(0, 1000)
    for part in parts.values():
        rows = part.column("row").to_numpy().astype(np.int64)
        assert part.equals(whole.take(pa.array(rows)))
        assert all(column.null_count == 0 for column in part.columns)


def test_a_function_of_rows_and_seed_alone(tmp_path: Path) -> None:
    first = shuffled(tmp_path / "a", ALL_TRAIN)
    assert shuffled(tmp_path / "b", ALL_TRAIN, block_rows=999) == first
    assert shuffled(tmp_path / "d", ALL_TRAIN, span_blocks=1) == first
    assert shuffled(tmp_path / "e", ALL_TRAIN, buffer_bytes=0) == first
    assert numbers(shuffled(tmp_path / "c", ALL_TRAIN, seed=1)) != numbers(first)


def test_validation_test_and_unshuffled_train_keep_their_order(tmp_path: Path) -> None:
    split = np.random.default_rng(0).integers(0, 3, 1000).astype(np.uint8)
    for shuffle in (True, False):
        parts = shuffled(tmp_path / str(shuffle), split, shuffle=shuffle)
        assert numbers(parts, "validation") == np.flatnonzero(split == 1).tolist()
        assert numbers(parts, "test") == np.flatnonzero(split == 2).tolist()
        assert (numbers(parts) == np.flatnonzero(split == 0).tolist()) != shuffle
        assert sorted(numbers(parts)) == np.flatnonzero(split == 0).tolist()


def test_parts_are_about_as_large_as_asked(tmp_path: Path) -> None:
    split = np.repeat(np.array([0, 1, 2], np.uint8), (990, 101, 30))
    parts = shuffled(tmp_path / "a", split)
    sizes = {path: part.num_rows for path, part in parts.items()}
    assert sum(path.startswith("train") for path in sizes) == 10
    assert [sizes[f"validation/part-0000{part}.arrow"] for part in (0, 1)] == [51, 50]
    assert sizes["test/part-00000.arrow"] == 30
    # 99 rows a part expected, five standard deviations of sqrt(990 * 0.1 * 0.9) = 9.4.
    assert all(abs(n - 99) < 47 for path, n in sizes.items() if path.startswith("train"))


def test_an_absent_split_has_no_part() -> None:
    plan = PartPlan.of(np.array([5, 0, 7]), 8.0, shuffle=True, seed=0)
    assert [plan.path(part) for part in range(len(plan))] == [
        "train/part-00000.arrow",
        "test/part-00000.arrow",
    ]
    parts = plan.parts_of(np.array([0, 2, 0], np.uint8), 0, np.zeros(3, np.int64))
    assert parts.tolist() == [0, 1, 0]
    assert [plan.is_shuffled(part) for part in range(2)] == [True, False]


@pytest.mark.parametrize("num_parts", [1, 4])
def test_every_place_is_equally_likely(tmp_path: Path, num_parts: int) -> None:
    # Row r lands in tenth p of the order; over 60 seeds and the 100 rows of tenth r // 100, each of
    # the 100 pairs of tenths is expected 60 * 100 / 10 = 600 times. Pearson's statistic has 81
    # degrees of freedom (rows and columns of a permutation's table sum up): mean 81, standard
    # deviation sqrt(162) = 12.7; 145 is five above.
    table = np.zeros((10, 10))
    for seed in range(60):
        folder = tmp_path / str(seed)
        parts = shuffled(
            folder, ALL_TRAIN, seed=seed, rows_per_part=1000 // num_parts, block_rows=500
        )
        np.add.at(table, (np.array(numbers(parts)) // 100, np.arange(1000) // 100), 1)
    assert ((table - 600) ** 2 / 600).sum() < 145


def test_a_part_that_no_row_was_drawn_for_is_absent(tmp_path: Path) -> None:
    plan = PartPlan(num_parts=(3, 0, 0), rows_per_part=(1, 0, 0), shuffle=True, seed=0)
    spools = [tmp_path / "0", tmp_path / "1"]
    for number, spool in enumerate(spools):
        with SpoolWriter(spool, len(plan), 1 << 20) as writer:
            writer.append(encoded(number, number + 1), np.array([2 * number], np.int32))
    loaded = [load_part(spools, SCHEMA, plan, part) for part in range(3)]
    assert [rows and rows.column("row").to_pylist() for rows in loaded] == [[0.0], None, [1.0]]
