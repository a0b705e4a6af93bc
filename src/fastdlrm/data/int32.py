"""Raw files of int32 rows -> batches of their columns; such are the reference's binary files.

A row is one little-endian int32 a column, without header or padding. A binary file of the reference
for Criteo (MLPerf v1) has 40: label, 13 dense numbers before the logarithm, negative ones set to 0,
and 26 ids that are rows of their tables; 160 bytes a row.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdlrm.data.config import SourceConfig
from fastdlrm.data.scan import Scan
from fastdlrm.data.text import BATCH_ROWS, RawBatch, require_columns
from fastdlrm.errors import ConfigError, DataError

VALUE_BYTES = 4


class Int32Reader:
    """Reads one file once, a batch of rows in memory at a time.

    Args:
        path: The file, plain or gzipped.
        source: Names its columns.
        columns: The columns to keep.

    Raises:
        ConfigError: The layout names no columns, or lacks one.
    """

    def __init__(self, path: Path, source: SourceConfig, columns: Sequence[str]) -> None:
        if source.header or not source.columns:
            raise ConfigError(
                f"data.source: format 'int32' with header = {str(source.header).lower()} and "
                f"{len(source.columns)} columns; name all columns in order and set header = false"
            )
        require_columns("data.source.columns", columns, source.columns, ConfigError)
        self._scan = Scan(path)
        self._names = list(source.columns)
        self._columns = list(columns)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk read so far."""
        return self._scan.size_bytes

    @property
    def num_bytes_read(self) -> int:
        """Bytes on disk read so far."""
        return self._scan.size_bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal checksum of the bytes read so far."""
        return self._scan.sha256

    def batches(self) -> Iterator[RawBatch]:
        """All rows in file order.

        Raises:
            DataError: The file cannot be read, is damaged, or ends within a row.
        """
        row_bytes = VALUE_BYTES * len(self._names)
        left, num_rows = b"", 0
        for chunk in self._scan.chunks():
            octets = left + chunk
            whole = len(octets) // row_bytes * row_bytes
            rows = np.frombuffer(octets[:whole], dtype="<i4").reshape(-1, len(self._names))
            for start in range(0, len(rows), BATCH_ROWS):
                yield self._batch(rows[start : start + BATCH_ROWS], num_rows + start)
            num_rows += len(rows)
            left = octets[whole:]
        if left:
            raise DataError(
                f"{self._scan.path.name}: ends after {num_rows} rows and {len(left)} bytes of "
                f"{row_bytes}, one int32 for each of {len(self._names)} columns; copy the file "
                "again, or correct data.source.columns"
            )

    def _batch(self, rows: np.ndarray, start: int) -> RawBatch:
        arrays = [pa.array(rows[:, self._names.index(name)].copy()) for name in self._columns]
        lines = np.arange(start + 1, start + 1 + len(rows))
        return RawBatch(lines, pa.RecordBatch.from_arrays(arrays, self._columns), [])
