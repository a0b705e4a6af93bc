"""Staged rows: the Parquet files that `stage_file` writes, read again block by block.

A block is a run of consecutive rows of one file, so that its rows have consecutive numbers: row 0
is the first row of the first file.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LABEL = "__label"
TIME = "__time"

BLOCK_ROWS = 131_072
"""Most rows read at once."""
SPAN_ROW_GROUPS = 32
"""Most row groups of a span: what is counted, or encoded, as one task."""


def dense_column(feature: str) -> str:
    """Staged column of a dense feature."""
    return f"d.{feature}"


def sparse_column(feature: str) -> str:
    """Staged column of a sparse feature."""
    return f"s.{feature}"


def weight_column(feature: str) -> str:
    """Staged column of a bag's weights."""
    return f"w.{feature}"


@dataclass(frozen=True, slots=True)
class Block:
    """Some columns of consecutive rows.

    Attributes:
        start: Number of the first row.
        rows: The columns.
    """

    start: int
    rows: pa.RecordBatch

    @property
    def stop(self) -> int:
        """Number of the row after the last."""
        return self.start + self.rows.num_rows


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row group of a staged file: what a worker takes at a time."""

    path: Path
    row_group: int
    start: int
    num_rows: int


def spans(row_groups: Sequence[int]) -> list[range]:
    """Cut each file into equal runs of row groups, at most SPAN_ROW_GROUPS in one.

    Args:
        row_groups: Of each file.

    Returns:
        Numbers of chunks, as in `StagedRows.chunks`.
    """
    found, first = [], 0
    for number in row_groups:
        num_spans = -(-number // SPAN_ROW_GROUPS)
        for place in range(num_spans):
            start, stop = (first + number * (place + i) // num_spans for i in (0, 1))
            found.append(range(start, stop))
        first += number
    return found


class StagedRows:
    """All staged files of one `prepare`, in the order of the inputs.

    Each thread keeps the file open that it read last, so that a file with many row groups is not
    opened for each of them. Pickled, it is opened anew.

    Attributes:
        chunks: Every row group, in order.
        file_starts: Number of each file's first row, and the number of rows at the end.
        schema: Columns, the same in every file.
        num_ids: By bag column, the ids in all rows, an empty bag counting as one.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self.chunks: list[Chunk] = []
        self.file_starts = [0]
        self.schema = pq.read_schema(paths[0])
        bags = [i for i, field in enumerate(self.schema) if pa.types.is_list(field.type)]
        self.num_ids = {self.schema.names[i]: 0 for i in bags}
        for path in paths:
            start = self.file_starts[-1]
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                stored = metadata.row_group(group)
                self.chunks.append(Chunk(path, group, start, stored.num_rows))
                start += stored.num_rows
                for i in bags:
                    self.num_ids[self.schema.names[i]] += stored.column(i).num_values
            self.file_starts.append(start)
        self._opened = threading.local()

    def __reduce__(self) -> tuple[type["StagedRows"], tuple[tuple[Path, ...]]]:
        return StagedRows, (self._paths,)

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.file_starts[-1]

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """All rows in order."""
        for chunk in self.chunks:
            yield from self.read(chunk, columns)

    def read(self, chunk: Chunk, columns: Sequence[str]) -> Iterator[Block]:
        """A chunk's rows in order, at most BLOCK_ROWS at once."""
        start = chunk.start
        batches = self._open(chunk.path).iter_batches(
            BLOCK_ROWS, [chunk.row_group], list(columns), use_threads=False
        )
        for rows in batches:
            yield Block(start, rows)
            start += rows.num_rows

    def _open(self, path: Path) -> pq.ParquetFile:
        if getattr(self._opened, "path", None) != path:
            self._opened.file = pq.ParquetFile(path, pre_buffer=False)
            self._opened.path = path
        return self._opened.file
