"""Which staged rows are train, validation and test: a function of rows, config and seed.

Test is cut first, validation from the rest. Both cuts are resolved to a bound on the row number,
on the time or on a random draw, so that any block of rows can be split on its own.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.manifest import SplitInfo
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.data.keys import stream, uniforms
from fastdlrm.data.sql import select_values
from fastdlrm.data.staged import LABEL, TIME, Block, StagedRows
from fastdlrm.errors import ConfigError, DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = ("train", "validation", "test")
"""Names, by number."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A holdout resolved against the rows: of its bounds, the one that is set decides."""

    first_row: int | None = None
    first_time: int | float | None = None
    stream: int | None = None
    share: float = 0.0

    def takes(self, block: Block) -> Mask:
        """Whether the cut takes each row."""
        if self.first_row is not None:
            return np.arange(block.start, block.stop) >= self.first_row
        if self.first_time is not None:
            return _times(block) >= self.first_time
        return uniforms(np.uint64(self.stream or 0), block.start, block.stop) < self.share


_NOTHING = _Cut(first_row=sys.maxsize)


@dataclass(frozen=True, slots=True)
class Splits:
    """The resolved splits.

    Attributes:
        test: Rows cut first.
        validation: Rows cut from the rest.
        columns: Staged columns that `assign` reads.
    """

    test: _Cut
    validation: _Cut
    columns: tuple[str, ...]

    def assign(self, block: Block) -> NDArray[np.uint8]:
        """TRAIN, VALIDATION or TEST of each row; the block holds `columns`."""
        split = np.where(self.validation.takes(block), np.uint8(VALIDATION), np.uint8(TRAIN))
        split[self.test.takes(block)] = TEST
        return split

    def train_values(self, rows: StagedRows, column: str) -> Iterator[pa.Array]:
        """A column's values in the train rows, in order."""
        for block in rows.blocks([column, *self.columns]):
            values = block.rows.column(column)
            is_train = self.assign(block) == TRAIN
            yield values if is_train.all() else values.filter(pa.array(is_train))


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Rows and positives of each split.

    Attributes:
        rows: By chunk and split, shape (chunks, 3).
        positives: By chunk and split, shape (chunks, 3).
    """

    rows: NDArray[np.int64]
    positives: NDArray[np.int64]

    def infos(self) -> dict[str, SplitInfo]:
        """By split; one without rows is absent."""
        rows, positives = self.rows.sum(0), self.positives.sum(0)
        return {
            name: SplitInfo(num_rows=int(rows[i]), num_positives=int(positives[i]))
            for i, name in enumerate(SPLITS)
            if rows[i]
        }


def time_column(config: SplitConfig) -> str:
    """The raw column that the splits by time read; empty where there is none.

    Raises:
        ConfigError: Validation and test name different columns.
    """
    columns = {h.column for h in (config.validation, config.test) if h.by == "time"}
    if len(columns) > 1:
        raise ConfigError(
            f"split: validation and test are cut by different times, {sorted(columns)}; "
            "name the same column in both"
        )
    return columns.pop() if columns else ""


def resolve_splits(
    rows: StagedRows, config: SplitConfig, seed: int, connection: duckdb.DuckDBPyConnection
) -> Splits:
    """Turn amounts into bounds.

    Args:
        rows: All staged rows, with TIME where a split is by time.
        config: The [data.split] section.
        seed: Of the holdouts by hash.
        connection: Sorts times, spilling to disk.

    Raises:
        DataError: A split asked for gets no rows, or none are left for train.
    """
    columns = (TIME,) if time_column(config) else ()
    splits = Splits(_NOTHING, _NOTHING, columns)
    test = _resolve("test", config.test, rows, splits, seed, connection)
    splits = Splits(test, _NOTHING, columns)
    validation = _resolve("validation", config.validation, rows, splits, seed, connection)
    return Splits(test, validation, columns)


def count_splits(rows: StagedRows, splits: Splits, config: SplitConfig) -> SplitCounts:
    """Count rows and positives of each split, and check them.

    Raises:
        DataError: A split asked for got no rows, none are left for train, or the label is the
            same in all train rows.
    """
    counts = SplitCounts(*np.zeros((2, len(rows.chunks), 3), dtype=np.int64))
    for i, chunk in enumerate(rows.chunks):
        for block in rows.read(chunk, [LABEL, *splits.columns]):
            split = splits.assign(block)
            counts.rows[i] += np.bincount(split, minlength=3)
            is_positive = block.rows.column(LABEL).to_numpy() == 1
            counts.positives[i] += np.bincount(split[is_positive], minlength=3)
    num_rows, num_positives = counts.rows.sum(0), counts.positives.sum(0)
    for name, holdout, number in (
        ("test", config.test, TEST),
        ("validation", config.validation, VALIDATION),
    ):
        if holdout.by != "none" and num_rows[number] == 0:
            raise _empty(name, holdout, "takes no row")
    if num_rows[TRAIN] == 0:
        raise DataError(
            f"split: all {rows.num_rows} rows are held out, none is left for train; lower "
            "data.split.test.amount or data.split.validation.amount"
        )
    if num_positives[TRAIN] in (0, num_rows[TRAIN]):
        raise DataError(
            f"label: all {num_rows[TRAIN]} train rows are {int(num_positives[TRAIN] > 0)}, so "
            "there is nothing to learn; check data.label and data.split"
        )
    return counts


def _resolve(
    name: str,
    holdout: Holdout,
    rows: StagedRows,
    taken: Splits,
    seed: int,
    connection: duckdb.DuckDBPyConnection,
) -> _Cut:
    """One holdout's cut, from the rows that `taken` leaves in train."""
    if holdout.by == "none":
        return _NOTHING
    rest = _rest_by_chunk(rows, taken)
    if holdout.by in ("file", "range"):
        num_wanted = _rows_of_last(name, holdout, rows, taken)
        return _Cut(first_row=_last_rest_row(rows, taken, rest, num_wanted))
    num_wanted = round(holdout.amount * rows.num_rows)
    if num_wanted == 0:
        raise _empty(name, holdout, f"takes none of {rows.num_rows} rows")
    if num_wanted >= rest.sum():
        raise _empty(
            name, holdout, f"takes {num_wanted} of {rest.sum()} rows and leaves none for train"
        )
    if holdout.by == "position":
        return _Cut(first_row=_last_rest_row(rows, taken, rest, num_wanted))
    if holdout.by == "time":
        return _Cut(first_time=_last_rest_time(rows, taken, num_wanted, connection))
    share = holdout.amount * rows.num_rows / int(rest.sum())
    return _Cut(stream=int(stream(seed, name)), share=share)


def _empty(name: str, holdout: Holdout, found: str) -> DataError:
    return DataError(
        f"split.{name}: {holdout.amount:g} by {holdout.by!r} {found}; change "
        f"data.split.{name}.amount, give more rows or files, or set data.split.{name}.by = 'none'"
    )


def _rest_by_chunk(rows: StagedRows, taken: Splits) -> NDArray[np.int64]:
    """Rows of each chunk that no cut has taken."""
    if taken.test is _NOTHING:
        return np.array([chunk.num_rows for chunk in rows.chunks], dtype=np.int64)
    counts = [
        sum(
            int((taken.assign(block) == TRAIN).sum()) for block in rows.read(chunk, _columns(taken))
        )
        for chunk in rows.chunks
    ]
    return np.array(counts, dtype=np.int64)


def _columns(taken: Splits) -> Sequence[str]:
    return taken.columns or (LABEL,)


def _rows_of_last(name: str, holdout: Holdout, rows: StagedRows, taken: Splits) -> int:
    """Rows to take from the end: those of the last files or ranges that still hold rows."""
    starts = rows.file_starts
    if holdout.by == "range":
        starts = _range_starts(rows.num_rows, holdout.num_ranges)
    rest = _rest_between(rows, taken, starts)
    left = rest[rest > 0]
    amount = int(holdout.amount)
    if amount >= len(left):
        raise _empty(
            name, holdout, f"takes {amount} of {len(left)} {holdout.by}s and leaves none for train"
        )
    if amount:
        return int(left[-amount:].sum())
    num_wanted = int(holdout.amount * int(left[-1]))
    if num_wanted == 0:
        raise _empty(name, holdout, f"takes none of the {left[-1]} rows of the last {holdout.by}")
    return num_wanted


def _range_starts(num_rows: int, num_ranges: int) -> list[int]:
    """Number of each range's first row, and of all rows; the first ranges get the remainder."""
    length, num_longer = divmod(num_rows, num_ranges)
    return [i * length + min(i, num_longer) for i in range(num_ranges + 1)]


def _rest_between(rows: StagedRows, taken: Splits, starts: Sequence[int]) -> NDArray[np.int64]:
    """Rows that no cut has taken, from each start to the next."""
    if taken.test is _NOTHING:
        return np.array([stop - start for start, stop in pairwise(starts)], dtype=np.int64)
    rest = np.zeros(len(starts) - 1, dtype=np.int64)
    for block in rows.blocks(_columns(taken)):
        left = block.start + np.flatnonzero(taken.assign(block) == TRAIN)
        rest += np.histogram(left, bins=starts)[0] if len(left) else 0
    return rest


def _last_rest_row(
    rows: StagedRows, taken: Splits, rest: NDArray[np.int64], num_wanted: int
) -> int:
    """Number of the row from which on `num_wanted` rows are left."""
    behind = np.cumsum(rest[::-1])[::-1]
    place = int(np.flatnonzero(behind >= num_wanted)[-1])
    num_within = num_wanted - int(behind[place] - rest[place])
    left = np.concatenate(
        [
            block.start + np.flatnonzero(taken.assign(block) == TRAIN)
            for block in rows.read(rows.chunks[place], _columns(taken))
        ]
    )
    return int(left[-num_within])


def _last_rest_time(
    rows: StagedRows, taken: Splits, num_wanted: int, connection: duckdb.DuckDBPyConnection
) -> int | float:
    """The time of the `num_wanted`-th latest row that is left."""
    left = (pa.array(_times(block)[taken.assign(block) == TRAIN]) for block in rows.blocks([TIME]))
    query = f"FROM stream ORDER BY value DESC LIMIT 1 OFFSET {num_wanted - 1}"
    found = select_values(connection, rows.schema.field(TIME).type, left, query).read_all()
    time: int | float = found.column(0)[0].as_py()
    return time


def _times(block: Block) -> NDArray[Any]:
    return block.rows.column(TIME).to_numpy()
