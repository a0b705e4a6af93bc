"""Raw Parquet files -> batches of their columns."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdlrm.contracts.manifest import sha256_of
from fastdlrm.data.text import BATCH_ROWS, RawBatch, require_columns
from fastdlrm.errors import DataError

_BUFFER_BYTES = 1 << 20
"""Read ahead of a column; without, whole row groups are, whose size the file decides."""


class ParquetReader:
    """Reads one Parquet file, a batch of rows in memory at a time.

    Args:
        path: The file.
        columns: The columns to keep; None for all.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        self._path = path
        self._columns = columns
        self._share_read = 0.0

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._path.stat().st_size

    @property
    def num_bytes_read(self) -> int:
        """Bytes on disk read so far, by the share of rows."""
        return int(self._share_read * self.size_bytes)

    @property
    def sha256(self) -> str:
        """Hexadecimal checksum of the file."""
        return sha256_of(self._path)

    def batches(self) -> Iterator[RawBatch]:
        """All rows in file order; white space around text is left out.

        Raises:
            DataError: The file is damaged or no Parquet, or lacks a column.
        """
        first_row = 1
        try:
            with pq.ParquetFile(self._path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                found = file.schema_arrow.names
                names = list(found if self._columns is None else self._columns)
                require_columns(f"{self._path.name}:", names, found, DataError)
                for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
                    arrays = [_plain(batch.column(name)) for name in names]
                    lines = np.arange(first_row, first_row + len(batch))
                    yield RawBatch(lines, pa.RecordBatch.from_arrays(arrays, names), [])
                    first_row += len(batch)
                    self._share_read = (first_row - 1) / file.metadata.num_rows
        except (pa.ArrowException, OSError) as problem:
            raise DataError(
                f"{self._path.name}: not a Parquet file, or a damaged one: {problem}; write or "
                "copy it again, or check data.source.format"
            ) from problem


def _plain(column: pa.Array) -> pa.Array:
    """The same values, lists too, without dictionary, with offsets of 32 bits, text trimmed."""
    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        ends = np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy())
        offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
        return pa.ListArray.from_arrays(offsets, _plain(column.flatten()), mask=column.is_null())
    if types.is_large_string(kind) or types.is_string_view(kind):
        column = column.cast(pa.string())
    return pc.ascii_trim_whitespace(column) if types.is_string(column.type) else column
