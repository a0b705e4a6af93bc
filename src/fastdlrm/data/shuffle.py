"""External shuffle: encoded rows -> parts on disk, with memory for a few parts at a time.

First each row goes to a part: a train row to one drawn at random, any other to the next in input
order. Rows are appended to one spool file a part. Then each spool is loaded alone, permuted (train
only) and becomes the part. A random part and a random order in it make a uniform permutation.

Invariant: the parts are a function of the rows, their order, the splits, the seed and `part_bytes`
alone; neither memory nor the number of workers enters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from fastdlrm.data.keys import draws, stream
from fastdlrm.data.split import SPLITS, TRAIN

PART_BYTES = 128 << 20
"""Encoded bytes of a part, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """How many parts each split has, and which row goes where.

    Parts are numbered through: those of train, then of validation, then of test.

    Attributes:
        num_parts: By split.
        rows_per_part: By split, for the splits that keep their order.
        shuffle: Whether train is shuffled.
        seed: Of the shuffle.
    """

    num_parts: tuple[int, ...]
    rows_per_part: tuple[int, ...]
    shuffle: bool
    seed: int

    @classmethod
    def of(
        cls,
        num_rows: NDArray[np.int64],
        row_bytes: float,
        *,
        shuffle: bool,
        seed: int,
        part_bytes: int = PART_BYTES,
    ) -> "PartPlan":
        """Cut the splits into parts of about `part_bytes`.

        Args:
            num_rows: Rows of each split, shape (3,).
            row_bytes: Encoded bytes of a row, on average.
            shuffle: Whether train is shuffled.
            seed: Of the shuffle.
            part_bytes: Encoded bytes of a part, about.
        """
        most = max(1, int(part_bytes / row_bytes))
        parts = tuple(-(-int(n) // most) for n in num_rows)
        rows = tuple(-(-int(n) // p) if p else 0 for n, p in zip(num_rows, parts, strict=True))
        return cls(num_parts=parts, rows_per_part=rows, shuffle=shuffle, seed=seed)

    def __len__(self) -> int:
        return sum(self.num_parts)

    def first_part(self, split: int) -> int:
        """Number of a split's first part."""
        return sum(self.num_parts[:split])

    def path(self, part: int) -> str:
        """Where a part lies in the dataset."""
        split = self._split_of(part)
        return f"{SPLITS[split]}/part-{part - self.first_part(split):05d}.arrow"

    def is_shuffled(self, part: int) -> bool:
        """Whether the part's rows are permuted."""
        return self.shuffle and self._split_of(part) == TRAIN

    def parts_of(
        self, split: NDArray[np.uint8], start: int, ranks: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """The part of each row of a block.

        Args:
            split: Of each row, shape (n,).
            start: Number of the first row.
            ranks: Rows of each split in front of the block, shape (3,).

        Returns:
            Shape (n,).
        """
        parts = np.empty(len(split), dtype=np.int32)
        for number in range(len(SPLITS)):
            members = np.flatnonzero(split == number)
            if number == TRAIN and self.shuffle:
                drawn = draws(stream(self.seed, "part"), start, start + len(split))[members]
                within = drawn % np.uint64(max(1, self.num_parts[TRAIN]))
            else:
                rank = ranks[number] + np.arange(len(members))
                within = rank // max(1, self.rows_per_part[number])
            parts[members] = self.first_part(number) + within.astype(np.int32)
        return parts

    def _split_of(self, part: int) -> int:
        return int(np.searchsorted(np.cumsum(self.num_parts), part, side="right"))


def pieces(rows: pa.RecordBatch, parts: NDArray[np.int32], num_parts: int) -> Iterator["Piece"]:
    """Sort a block's rows by part; each part's rows stay in order.

    Args:
        rows: Encoded rows.
        parts: The part of each, shape (n,).
        num_parts: Number of all parts.
    """
    order, bounds = _order_by_part(parts, num_parts)
    rows = rows.take(pa.array(order))
    for part in np.flatnonzero(np.diff(bounds)).tolist():
        piece = rows.slice(bounds[part], bounds[part + 1] - bounds[part])
        yield Piece(part, piece.serialize())


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one part, as an Arrow IPC message."""

    part: int
    message: pa.Buffer

    def append_to(self, folder: Path) -> None:
        """Append the rows to the part's spool."""
        with spool_path(folder, self.part).open("ab") as file:
            file.write(self.message)


def spool_path(folder: Path, part: int) -> Path:
    """Where a part's rows are collected."""
    return folder / f"{part:05d}.spool"


def load_part(spool: Path, schema: pa.Schema, plan: PartPlan, part: int) -> pa.RecordBatch:
    """The rows of a part in their final order; takes twice the spool's memory.

    Args:
        spool: Where the rows were collected, in input order.
        schema: Encoded columns.
        plan: Says whether and how the part is permuted.
        part: Its number.
    """
    batches = []
    with pa.memory_map(str(spool)) as source:
        while source.tell() < source.size():
            batches.append(pa.ipc.read_record_batch(pa.ipc.read_message(source), schema))
        rows = pa.Table.from_batches(batches)
        order = None
        if plan.is_shuffled(part):
            keys = draws(stream(plan.seed, f"order of part {part}"), 0, rows.num_rows)
            order = pa.array(np.argsort(keys))
        columns = [_joined(column, order) for column in rows.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _joined(column: pa.ChunkedArray, order: pa.Array | None) -> pa.Array:
    joined = pa.concat_arrays(column.chunks)
    return joined if order is None else joined.take(order)


@njit(cache=True, nogil=True)
def _order_by_part(
    parts: NDArray[np.int32], num_parts: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """A stable counting sort.

    Returns:
        The rows in the order of their parts, and where each part begins, shape (num_parts + 1,).
    """
    bounds = np.zeros(num_parts + 1, dtype=np.int64)
    for part in parts:
        bounds[part + 1] += 1
    bounds = np.cumsum(bounds)
    following = bounds[:-1].copy()
    order = np.empty(len(parts), dtype=np.int32)
    for i in range(len(parts)):
        order[following[parts[i]]] = i
        following[parts[i]] += 1
    return order, bounds
