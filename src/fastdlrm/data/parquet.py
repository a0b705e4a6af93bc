"""Raw Parquet files -> batches of their columns."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastdlrm.contracts.manifest import sha256_of
from fastdlrm.data.text import BATCH_ROWS, RawBatch, require_columns
from fastdlrm.errors import DataError


class ParquetReader:
    """Reads one Parquet file, within the connection's memory limit.

    Args:
        path: The file.
        connection: Reads it; not shared with another thread.
        columns: The columns to keep; None for all.

    Attributes:
        columns: The columns kept.

    Raises:
        DataError: The file cannot be read, or lacks a column.
    """

    def __init__(
        self,
        path: Path,
        connection: duckdb.DuckDBPyConnection,
        columns: Sequence[str] | None = None,
    ) -> None:
        self._path = path
        try:
            self._rows = connection.sql(
                "FROM read_parquet(?, hive_partitioning = false)", params=[glob.escape(str(path))]
            )
        except duckdb.Error as problem:
            raise self._unreadable(problem) from problem
        if columns is not None:
            require_columns(f"{path.name}:", columns, self._rows.columns, DataError)
        self.columns = list(self._rows.columns if columns is None else columns)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._path.stat().st_size

    @property
    def sha256(self) -> str:
        """Hexadecimal checksum of the file."""
        return sha256_of(self._path)

    def batches(self) -> Iterator[RawBatch]:
        """All rows in file order; white space around text is left out.

        Raises:
            DataError: The file is damaged.
        """
        quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in self.columns)
        first_row = 1
        try:
            for batch in self._rows.project(quoted).to_arrow_reader(BATCH_ROWS):
                arrays = [_trimmed(column) for column in batch.columns]
                lines = np.arange(first_row, first_row + len(batch))
                yield RawBatch(lines, pa.RecordBatch.from_arrays(arrays, self.columns), [])
                first_row += len(batch)
        except (duckdb.Error, OSError) as problem:
            raise self._unreadable(problem) from problem

    def _unreadable(self, problem: Exception) -> DataError:
        return DataError(
            f"{self._path.name}: not a Parquet file, or a damaged one: {problem}; write or copy it "
            "again, or set data.source.format"
        )


def _trimmed(column: pa.Array) -> pa.Array:
    return pc.ascii_trim_whitespace(column) if pa.types.is_string(column.type) else column
