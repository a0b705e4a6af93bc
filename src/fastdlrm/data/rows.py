"""Encoded rows in Arrow record batches -> `Batch`, without copying the rows twice.

Columns, by name: `label` (absent where unknown), each dense feature (float32), each sparse feature
(an unsigned integer, or a list of them for a bag) and `{feature}.weights` (list of float32).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.gather import Columns, find_runs

Values = NDArray[np.generic]
Selection = slice | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Bags:
    """A list column: bag i is values[offsets[i]:offsets[i + 1]]."""

    offsets: NDArray[np.int64]
    values: Values

    def lengths(self, rows: Selection) -> NDArray[np.int64]:
        return np.diff(self.offsets)[rows]

    def take(self, rows: Selection) -> Values:
        if isinstance(rows, slice):
            return self.values[self.offsets[rows.start] : self.offsets[rows.stop]]
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        before = np.cumsum(lengths) - lengths
        return self.values[np.repeat(starts - before, lengths) + np.arange(lengths.sum())]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The columns of one record batch, as views of its Arrow buffers."""

    columns: dict[str, Values]
    bags: dict[str, _Bags]


class Rows:
    """Rows of one split, or of any run of encoded record batches; a row is known by its position.

    Args:
        batches: Encoded record batches; memory-mapped ones are read on demand.
        schema: Names and kinds of the features.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], schema: Schema) -> None:
        self._schema = schema
        self._chunks = [_views(batch) for batch in batches if batch.num_rows]
        sizes = [batch.num_rows for batch in batches if batch.num_rows]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._has_bags = any(feature.bag for feature in schema.sparse)
        self._has_weights = any(feature.is_weighted for feature in schema.sparse)
        if not self._has_bags:
            self._columns = Columns([chunk.columns for chunk in self._chunks], schema)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def is_labelled(self) -> bool:
        """Whether the label is known."""
        return all("label" in chunk.columns for chunk in self._chunks)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in order; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.batch(slice(start, min(start + batch_size, len(self))))

    def batch(self, rows: Selection, pin: bool = False) -> Batch:
        """Gather rows into fresh tensors.

        Args:
            rows: Positions, shape (B,), or a slice of them.
            pin: Whether the tensors are page-locked, for asynchronous copies to a GPU.
        """
        return self._with_bags(rows, pin) if self._has_bags else self._single(rows, pin)

    def _single(self, rows: Selection, pin: bool) -> Batch:
        """A batch with a buffer."""
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop, dtype=np.int64)
        B, N, F = len(rows), len(self._schema.dense), len(self._schema.sparse)
        batch = Batch.allocate(B, N, F, pin=pin)
        self._columns.gather(find_runs(rows, self._starts), batch)
        return batch

    def _with_bags(self, rows: Selection, pin: bool) -> Batch:
        pieces = self._locate(rows)
        B = sum(_count(piece.rows) for piece in pieces)
        dense = torch.empty(B, len(self._schema.dense))
        out = dense.numpy()
        for j, feature in enumerate(self._schema.dense):
            for piece in pieces:
                out[piece.into, j] = piece.chunk.columns[feature.name][piece.rows]
        labels = torch.full((B,), torch.nan)
        for piece in pieces:
            if "label" in piece.chunk.columns:
                labels.numpy()[piece.into] = piece.chunk.columns["label"][piece.rows]
        batch = Batch(dense=dense, sparse=self._bags(pieces, B), labels=labels)
        return batch.pin() if pin else batch

    def _locate(self, rows: Selection) -> list["_Piece"]:
        """The chunks that hold the rows, and where each chunk's rows go in the batch."""
        if isinstance(rows, slice):
            first = int(np.searchsorted(self._starts, rows.start, side="right")) - 1
            pieces, start = [], rows.start
            while start < rows.stop:
                low, high = int(self._starts[first]), int(self._starts[first + 1])
                stop = min(rows.stop, high)
                into = slice(start - rows.start, stop - rows.start)
                pieces.append(_Piece(self._chunks[first], slice(start - low, stop - low), into))
                first, start = first + 1, stop
            return pieces
        if len(self._chunks) == 1:
            return [_Piece(self._chunks[0], rows, slice(0, len(rows)))]
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        return [
            _Piece(self._chunks[c], rows[into] - self._starts[c], into)
            for c in np.unique(owner)
            for into in [np.flatnonzero(owner == c)]
        ]

    def _bags(self, pieces: list["_Piece"], B: int) -> SparseBatch:
        F = len(self._schema.sparse)
        lengths = np.ones((F, B), dtype=np.int32)
        ids: list[Values] = []
        weights: list[Values] = []
        for f, feature in enumerate(self._schema.sparse):
            name = feature.name
            if feature.bag:
                for piece in pieces:
                    lengths[f, piece.into] = piece.chunk.bags[name].lengths(piece.rows)
            ids.append(_merged(pieces, name, lengths[f], np.dtype(np.int32)))
            if feature.is_weighted:
                weights.append(_merged(pieces, f"{name}.weights", lengths[f], np.dtype(np.float32)))
            elif self._has_weights:
                weights.append(np.ones(len(ids[-1]), dtype=np.float32))
        return SparseBatch(
            ids=torch.from_numpy(np.concatenate(ids)),
            lengths=torch.from_numpy(lengths.reshape(-1)),
            weights=torch.from_numpy(np.concatenate(weights)) if weights else None,
            num_features=F,
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one chunk, and the places of the batch they go to."""

    chunk: _Chunk
    rows: Selection
    into: Selection


def _count(rows: Selection) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _views(batch: pa.RecordBatch) -> _Chunk:
    chunk = _Chunk({}, {})
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_list(column.type):
            offsets = column.offsets.to_numpy().astype(np.int64)
            chunk.bags[name] = _Bags(offsets, column.values.to_numpy())
        else:
            chunk.columns[name] = column.to_numpy()
    return chunk


def _merged(
    pieces: list[_Piece], name: str, lengths: NDArray[np.int32], dtype: np.dtype[np.generic]
) -> Values:
    """One feature's values over all pieces, in the batch's order of bags."""
    parts = [
        p.chunk.bags[name].take(p.rows) if name in p.chunk.bags else p.chunk.columns[name][p.rows]
        for p in pieces
    ]
    if len(parts) == 1:
        return parts[0].astype(dtype)
    out = np.empty(int(lengths.sum()), dtype=dtype)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    for piece, part in zip(pieces, parts, strict=True):
        size = lengths[piece.into].astype(np.int64)
        before = np.cumsum(size) - size
        out[np.repeat(starts[piece.into] - before, size) + np.arange(size.sum())] = part
    return out
