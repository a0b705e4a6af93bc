"""Runs: how often each value of one table occurs in one span of train rows, as files to be merged.

A run of integer keys is (key, count) pairs of uint64 in the order of the mixed keys, so that any
range of them is one piece of the file. A run of texts is an Arrow IPC stream of (value, count).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.schema import SparseFeature
from fastdlrm.data.features import key_values, present_values
from fastdlrm.data.keys import Keys, mix, mixed
from fastdlrm.data.keytable import KeyCounter
from fastdlrm.data.split import TRAIN, Splits
from fastdlrm.data.sql import select_values
from fastdlrm.data.staged import Chunk, StagedRows, sparse_column

_READ_PAIRS = 1 << 18
"""Pairs of a run that are read at once."""

TEXT_RUN = pa.schema([("value", pa.string()), ("count", pa.uint64())])

Edges = Mapping[str, Sequence[float]]
ColumnValues = Callable[[str], Iterator[pa.Array]]
"""The train values of a staged column, piece by piece; may be asked for again."""


class TrainSpan:
    """The train rows of some chunks; which they are is found once for all columns."""

    def __init__(self, rows: StagedRows, splits: Splits, chunks: Sequence[Chunk]) -> None:
        self._rows, self._splits, self._chunks = rows, splits, chunks
        self._masks: list[pa.Array | None] = []

    def values(self, column: str) -> Iterator[pa.Array]:
        """A staged column's values, in order."""
        if not self._masks:
            blocks = self._blocks(self._splits.columns or (column,))
            self._masks = [self._mask(self._splits.assign(block) == TRAIN) for block in blocks]
        for block, mask in zip(self._blocks([column]), self._masks, strict=True):
            values = block.rows.column(column)
            yield values if mask is None else values.filter(mask)

    def _blocks(self, columns: Sequence[str]) -> Iterator[Any]:
        for chunk in self._chunks:
            yield from self._rows.read(chunk, columns)

    @staticmethod
    def _mask(is_train: NDArray[np.bool_]) -> pa.Array | None:
        return None if is_train.all() else pa.array(is_train)


def write_run(
    out: Path,
    features: Sequence[SparseFeature],
    values: ColumnValues,
    *,
    edges: Edges,
    connection: duckdb.DuckDBPyConnection,
    memory_bytes: int,
) -> None:
    """Count the values of one table's features.

    Args:
        out: File to write.
        features: All features of the table.
        values: Their train values.
        edges: Inner bucket edges of each feature of key "quantile".
        connection: Groups texts, spilling to disk.
        memory_bytes: Most memory to take; where the values need more, they are read in several
            passes, or texts are grouped by the connection, on disk.
    """
    if features[0].key == "string":
        _write_texts(out, features, values, connection)
        return
    counter = KeyCounter(memory_bytes // 2)
    with out.open("wb") as file:
        while not counter.is_done:
            for feature in features:
                for column in values(sparse_column(feature.name)):
                    present = present_values(column)
                    counter.add(key_values(feature, present, edges.get(feature.name, ())))
            keys, counts = counter.finish_pass()
            order = np.argsort(mixed(keys))
            file.write(np.stack([keys[order], counts[order]], axis=1).data)


def read_run(run: Path, low: int, last: int) -> Iterator[tuple[Keys, NDArray[np.uint64]]]:
    """Keys and counts of a run of integer keys, those whose mixed keys lie in [low, last]."""
    if run.stat().st_size == 0:
        return
    pairs = np.memmap(run, dtype=np.uint64, mode="r").reshape(-1, 2)
    stop = _place(pairs, last + 1)
    for start in range(_place(pairs, low), stop, _READ_PAIRS):
        piece = pairs[start : min(stop, start + _READ_PAIRS)]
        yield np.ascontiguousarray(piece[:, 0]), np.ascontiguousarray(piece[:, 1])


def read_texts(run: Path) -> Iterator[pa.RecordBatch]:
    """A run of texts, batch by batch."""
    with pa.OSFile(str(run)) as file, pa.ipc.open_stream(file) as batches:
        yield from batches


def _write_texts(
    out: Path,
    features: Sequence[SparseFeature],
    values: ColumnValues,
    connection: duckdb.DuckDBPyConnection,
) -> None:
    texts = (
        present_values(column)
        for feature in features
        for column in values(sparse_column(feature.name))
    )
    query = "SELECT value, count(*)::UBIGINT AS count FROM stream GROUP BY value"
    with pa.OSFile(str(out), "wb") as file, pa.ipc.new_stream(file, TEXT_RUN) as writer:
        for batch in select_values(connection, pa.string(), texts, query):
            writer.write_batch(batch.cast(TEXT_RUN))


def _place(pairs: NDArray[np.uint64], bound: int) -> int:
    """Number of the first pair whose mixed key is at least `bound`."""
    low, high = 0, len(pairs)
    while low < high:
        middle = (low + high) // 2
        if int(mix(pairs[middle, 0])) < bound:
            low = middle + 1
        else:
            high = middle
    return low
