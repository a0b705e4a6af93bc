"""External shuffle: encoded rows -> parts on disk, with memory for a few parts at a time.

First each row goes to a part: a train row to one drawn at random, any other to the next in input
order. Each span of rows is written to a spool of its own, sorted by part. Then a part's rows are
read from all spools, permuted (train only) and become the part. A random part and a random order
in it make a uniform permutation.

Invariant: the parts are a function of the rows, their order, the splits, the seed and `part_bytes`
alone; neither memory nor the number of workers enters.
"""

import os
from collections.abc import Iterator, Sequence
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


class SpoolWriter:
    """Collects a span's encoded rows in one file, sorted by part, each part's rows in order.

    Rows wait in memory until they fill the buffer; what then is written for one part is a piece.
    The file: all pieces as Arrow IPC messages; where each begins and the last ends, int64 by buffer
    and part; the number of buffers, int64.

    Args:
        path: File to write.
        num_parts: Number of all parts.
        buffer_bytes: Bytes of waiting rows beyond which they are written; writing takes as much
            again, and one column.
    """

    def __init__(self, path: Path, num_parts: int, buffer_bytes: int) -> None:
        self._file = path.open("wb")
        self._num_parts = num_parts
        self._buffer_bytes = buffer_bytes
        self._rows: list[pa.RecordBatch] = []
        self._parts: list[NDArray[np.int32]] = []
        self._num_bytes = 0
        self._offsets: list[NDArray[np.int64]] = []

    def __enter__(self) -> "SpoolWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what waits and where the pieces are; after an error, only close."""
        try:
            if kind is None:
                self._flush()
                index = np.concatenate([*self._offsets, [len(self._offsets)]])
                self._file.write(index.astype(np.int64).data)
        finally:
            self._file.close()

    def append(self, rows: pa.RecordBatch, parts: NDArray[np.int32]) -> None:
        """Take encoded rows and the part of each, shape (n,)."""
        self._rows.append(rows)
        self._parts.append(parts)
        self._num_bytes += rows.nbytes
        if self._num_bytes > self._buffer_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        order, bounds = _order_by_part(np.concatenate(self._parts), self._num_parts)
        rows = _joined(self._rows, pa.array(order))
        self._rows, self._parts, self._num_bytes = [], [], 0
        offsets = np.empty(self._num_parts + 1, dtype=np.int64)
        for part in range(self._num_parts):
            offsets[part] = self._file.tell()
            if bounds[part] < bounds[part + 1]:
                piece = rows.slice(bounds[part], bounds[part + 1] - bounds[part])
                self._file.write(piece.serialize())
        offsets[self._num_parts] = self._file.tell()
        self._offsets.append(offsets)


def read_pieces(spool: Path, num_parts: int, part: int) -> Iterator[pa.Buffer]:
    """The pieces of one part in a spool, in order."""
    with spool.open("rb") as file:
        index_end = file.seek(-8, os.SEEK_END)
        num_buffers = int(np.frombuffer(file.read(8), dtype=np.int64)[0])
        index = index_end - 8 * num_buffers * (num_parts + 1)
        for number in range(num_buffers):
            file.seek(index + 8 * (number * (num_parts + 1) + part))
            start, stop = np.frombuffer(file.read(16), dtype=np.int64).tolist()
            if start < stop:
                file.seek(start)
                yield pa.py_buffer(file.read(stop - start))


def load_part(
    spools: Sequence[Path], schema: pa.Schema, plan: PartPlan, part: int
) -> pa.RecordBatch | None:
    """The rows of a part in their final order; takes twice the part's memory, and one column.

    Args:
        spools: Of all spans, in input order.
        schema: Encoded columns.
        plan: Says whether and how the part is permuted.
        part: Its number.

    Returns:
        None where no row was drawn for it.
    """
    batches = [
        pa.ipc.read_record_batch(pa.ipc.read_message(piece), schema)
        for spool in spools
        for piece in read_pieces(spool, len(plan), part)
    ]
    if not batches:
        return None
    order = None
    if plan.is_shuffled(part):
        num_rows = sum(batch.num_rows for batch in batches)
        keys = draws(stream(plan.seed, f"order of part {part}"), 0, num_rows)
        order = pa.array(np.argsort(keys))
    return _joined(batches, order)


def _joined(batches: Sequence[pa.RecordBatch], order: pa.Array | None) -> pa.RecordBatch:
    """All rows, reordered, column by column so that one at a time lies in memory a third time."""
    schema = batches[0].schema
    columns = []
    for number in range(len(schema)):
        joined = pa.concat_arrays([batch.column(number) for batch in batches])
        columns.append(joined if order is None else joined.take(order))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


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
