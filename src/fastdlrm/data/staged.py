"""Staged rows: the Parquet files that `stage_file` writes, read again block by block.

A block is a run of consecutive rows of one file, so that its rows have consecutive numbers: row 0
is the first row of the first file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LABEL = "__label"
TIME = "__time"

BLOCK_ROWS = 131_072
"""Most rows read at once."""


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

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """The chunk's rows in order, at most BLOCK_ROWS at once."""
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            start = self.start
            for rows in file.iter_batches(
                BLOCK_ROWS, [self.row_group], list(columns), use_threads=False
            ):
                yield Block(start, rows)
                start += rows.num_rows


class StagedRows:
    """All staged files of one `prepare`, in the order of the inputs.

    Attributes:
        chunks: Every row group, in order.
        file_starts: Number of each file's first row, and the number of rows at the end.
        schema: Columns, the same in every file.
        num_values: By column, the rows, or the ids of a bag, an empty bag counting as one.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.chunks: list[Chunk] = []
        self.file_starts = [0]
        self.schema = pq.read_schema(paths[0])
        self.num_values = dict.fromkeys(self.schema.names, 0)
        for path in paths:
            start = self.file_starts[-1]
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                stored = metadata.row_group(group)
                self.chunks.append(Chunk(path, group, start, stored.num_rows))
                start += stored.num_rows
                for i, name in enumerate(self.schema.names):
                    self.num_values[name] += stored.column(i).num_values
            self.file_starts.append(start)

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.file_starts[-1]

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """All rows in order."""
        for chunk in self.chunks:
            yield from chunk.blocks(columns)
