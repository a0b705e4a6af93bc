from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.hashing import mix, text_key
from fastdlrm.contracts.manifest import SplitInfo
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.data.split import (
    SplitCounts,
    _range_starts,
    count_splits,
    resolve_splits,
    time_column,
)
from fastdlrm.data.staged import StagedRows
from fastdlrm.errors import ConfigError, DataError
from tests.staging import NONE, staged


def cut(by: str, amount: float, column: str = "", num_ranges: int = 0) -> Holdout:
    return Holdout(by=by, amount=amount, column=column, num_ranges=num_ranges)  # type: ignore[arg-type]


def log(
    folder: Path, *sizes: int, times: list[list[float]] | None = None, row_group_rows: int = 4
) -> StagedRows:
    """Files of so many rows."""
    files = []
    for number, size in enumerate(sizes):
        columns = {"__label": pa.array([row % 2 for row in range(size)], pa.uint8())}
        if times:
            columns["__time"] = pa.array(times[number])
        files.append(columns)
    return staged(folder, *files, row_group_rows=row_group_rows)


def split(
    rows: StagedRows, validation: Holdout = NONE, test: Holdout = NONE, seed: int = 0
) -> tuple[str, SplitCounts]:
    """A letter a row: . train, v validation, t test."""
    config = SplitConfig(validation=validation, test=test)
    with duckdb.connect() as connection:
        splits = resolve_splits(rows, config, seed, connection)
    counts = count_splits(rows, splits, config)
    numbers = np.concatenate([splits.assign(b) for b in rows.blocks(["__label", *splits.columns])])
    return "".join(".vt"[number] for number in numbers), counts


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        (NONE, NONE, "...... .... .. ........"),
        (NONE, cut("file", 1), "...... .... .. tttttttt"),
        (cut("file", 1), cut("file", 2), "...... vvvv tt tttttttt"),
        (cut("file", 2), NONE, "...... .... vv vvvvvvvv"),
        # Shares are of all 20 rows: 5 and 3.
        (cut("position", 0.15), cut("position", 0.25), "...... .... .. vvvttttt"),
        (cut("position", 0.15), cut("file", 1), "...... ...v vv tttttttt"),
        # The last file that still has rows.
        (cut("file", 1), cut("position", 0.4), "...... .... vv tttttttt"),
        (cut("file", 1), cut("position", 0.2), "...... .... .. vvvvtttt"),
        # The last half of the last file, then what is left of it.
        (cut("file", 1), cut("file", 0.5), "...... .... .. vvvvtttt"),
        (cut("file", 0.9), cut("file", 0.3), "...... .... .. .vvvvvtt"),
        (cut("file", 2), cut("file", 0.5), "...... .... vv vvvvtttt"),
    ],
)
def test_by_file_and_position(
    tmp_path: Path, validation: Holdout, test: Holdout, expected: str
) -> None:
    letters, _ = split(log(tmp_path, 6, 4, 2, 8), validation, test)
    assert letters == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("sizes", "num_ranges", "expected"),
    [
        # 23 = 7 * 3 + 2: ranges of 4 4 3 3 3 3 3, over the borders of files; the last is halved,
        # its first half being the longer one.
        ((6, 4, 2, 11), 7, ".... .... ... ... ... ... vvt"),
        # 24 = 7 * 3 + 3.
        ((24,), 7, ".... .... .... ... ... ... vvt"),
        # 28 = 7 * 4.
        ((5, 23), 7, ".... .... .... .... .... .... vvtt"),
        ((5, 4), 2, "..... vvtt"),
    ],
)
def test_by_half_a_range(
    tmp_path: Path, sizes: tuple[int, ...], num_ranges: int, expected: str
) -> None:
    """The reference's days of Kaggle's one file, and the halves of its last day."""
    rows = log(tmp_path, *sizes)
    validation, test = (cut("range", a, num_ranges=num_ranges) for a in (1, 0.5))
    assert split(rows, validation, test)[0] == expected.replace(" ", "")


def test_the_reference_s_days_of_kaggle() -> None:
    """45,840,617 lines: 7 * 6,548,659 + 4, so that the first four days have one line more."""
    starts = _range_starts(45_840_617, 7)
    assert [b - a for a, b in pairwise(starts)] == [6_548_660] * 4 + [6_548_659] * 3
    assert starts[6] == 39_291_958


def test_ranges_among_scattered_rows(tmp_path: Path) -> None:
    rows = log(tmp_path, 60, 40)
    letters, _ = split(rows, cut("range", 1, num_ranges=5), cut("hash", 0.3))
    before, last = letters[:80], letters[80:]
    assert set(before) == {".", "t"}
    assert set(last) == {"v", "t"}
    assert len(letters) == 100


def test_by_position_among_scattered_rows(tmp_path: Path) -> None:
    letters, _ = split(log(tmp_path, 60, 40), cut("position", 0.1), cut("hash", 0.3))
    left = letters.replace("t", "")
    assert left.count("v") == 10
    assert left.endswith("v" * 10)


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        # The 2 latest of 10 rows: times 9 and 8.
        (NONE, cut("time", 0.2, "t"), "t....t...."),
        # The 3 latest: 9, 8, and all of the rows at 7, which stay together.
        (NONE, cut("time", 0.3, "t"), "t.t..tt..."),
        # After those 4 rows, the latest 1 of the rest: 6.
        (cut("time", 0.1, "t"), cut("time", 0.3, "t"), "t.t..tt.v."),
        # The last file first, then the latest 2 of the rest: 9 and 8.
        (cut("time", 0.2, "t"), cut("file", 1), "v....vtttt"),
    ],
)
@pytest.mark.parametrize("kind", [int, float])
def test_by_time(
    tmp_path: Path, validation: Holdout, test: Holdout, expected: str, kind: type
) -> None:
    times = [[9, 1, 7, 2, 3, 8], [7, 2, 6, 0]]
    rows = log(tmp_path, 6, 4, times=[[kind(t) for t in file] for file in times])
    assert split(rows, validation, test)[0] == expected


def test_by_hash(tmp_path: Path) -> None:
    rows = log(tmp_path, 15_000, 5_000, row_group_rows=4096)
    letters, counts = split(rows, cut("hash", 0.1), cut("hash", 0.2), seed=3)
    # Shares of all rows, within five standard deviations: sqrt(20000 * 0.1 * 0.9) = 42.
    assert letters.count("t") == pytest.approx(4000, abs=5 * 57)
    assert letters.count("v") == pytest.approx(2000, abs=5 * 42)
    assert {name: info.num_rows for name, info in counts.infos().items()} == {
        "train": letters.count("."),
        "validation": letters.count("v"),
        "test": letters.count("t"),
    }
    assert split(rows, cut("hash", 0.1), cut("hash", 0.2), seed=3)[0] == letters
    assert split(rows, cut("hash", 0.1), cut("hash", 0.2), seed=4)[0] != letters
    # The test rows do not depend on the validation split.
    assert split(rows, NONE, cut("hash", 0.2), seed=3)[0] == letters.replace("v", ".")


def test_by_hash_as_defined(tmp_path: Path) -> None:
    stream = mix(3 ^ text_key("test"))
    drawn = [mix((stream + (row + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11 for row in range(40)]
    expected = "".join("t" if bits * 2**-53 < 0.4 else "." for bits in drawn)
    assert split(log(tmp_path, 20, 20), NONE, cut("hash", 0.4), seed=3)[0] == expected


def test_counts_by_chunk(tmp_path: Path) -> None:
    # Labels alternate from 0 in each file; chunks are rows 0-3, 4-5 and 6-7, 6-7 being file 1.
    _, counts = split(log(tmp_path, 6, 2), NONE, cut("position", 0.375))
    assert counts.rows.tolist() == [[4, 0, 0], [1, 0, 1], [0, 0, 2]]
    assert counts.positives.tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert counts.infos() == {
        "train": SplitInfo(num_rows=5, num_positives=2),
        "test": SplitInfo(num_rows=3, num_positives=2),
    }


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (NONE, cut("file", 2), r"split\.test: 2 by 'file' takes 2 of 2 files and leaves none"),
        (cut("file", 1), cut("file", 1), r"split\.validation: 1 by 'file' takes 1 of 1 files"),
        (
            NONE,
            cut("file", 0.2),
            r"split\.test: 0.2 by 'file' takes none of the 4 rows of th",
        ),
        (NONE, cut("range", 5, num_ranges=5), r"split\.test: 5 by 'range' takes 5 of 5 ranges"),
        (NONE, cut("position", 0.01), r"split\.test: 0.01 by 'position' takes none of 10 rows"),
        (cut("hash", 0.04), NONE, r"split\.validation: 0.04 by 'hash' takes none of 10 rows"),
        (
            cut("position", 0.5),
            cut("position", 0.5),
            r"split\.validation: 0.5 by 'position' takes 5 of 5 rows and leaves none for train",
        ),
        # Times are all alike, so they all stay together.
        (NONE, cut("time", 0.2, "t"), r"all 10 rows are held out, none is left for train"),
    ],
)
def test_a_split_without_rows_is_refused(
    tmp_path: Path, validation: Holdout, test: Holdout, message: str
) -> None:
    rows = log(tmp_path, 6, 4, times=[[1] * 6, [1] * 4])
    with pytest.raises(DataError, match=message):
        split(rows, validation, test)


def test_a_split_that_draws_no_row_is_refused(tmp_path: Path) -> None:
    seeds = range(200)
    draws = [mix((mix(s ^ text_key("test")) + 0x9E3779B97F4A7C15) % 2**64) for s in seeds]
    unlucky = draws.index(max(draws))  # row 0 of this seed draws nearly 1
    rows = staged(tmp_path, {"__label": pa.array([0, 1], pa.uint8())})
    late = mix((mix(unlucky ^ text_key("test")) + 2 * 0x9E3779B97F4A7C15) % 2**64)
    if late >> 11 < 0.3 * 2**53:
        pytest.fail("pick another seed")
    with pytest.raises(DataError, match=r"split\.test: 0.3 by 'hash' takes no row"):
        split(rows, NONE, cut("hash", 0.3), seed=unlucky)


@pytest.mark.parametrize("label", [0, 1])
def test_a_constant_label_in_train_is_refused(tmp_path: Path, label: int) -> None:
    same = {"__label": pa.array([label] * 3, pa.uint8())}
    other = {"__label": pa.array([1 - label] * 3, pa.uint8())}
    with pytest.raises(DataError, match=rf"label: all 3 train rows are {label}"):
        split(staged(tmp_path, same, other), NONE, cut("file", 1))


def test_one_time_column() -> None:
    by_time = cut("time", 0.1, "clock")
    assert time_column(SplitConfig(validation=NONE, test=NONE)) == ""
    assert time_column(SplitConfig(validation=cut("hash", 0.1), test=by_time)) == "clock"
    assert time_column(SplitConfig(validation=by_time, test=by_time)) == "clock"
    other = cut("time", 0.1, "sent")
    with pytest.raises(ConfigError, match=r"different times, \['clock', 'sent'\]"):
        time_column(SplitConfig(validation=by_time, test=other))
