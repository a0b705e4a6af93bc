"""Compiled loops that gather rows of Arrow columns into a batch of single ids.

The loops know a column by the addresses of its chunks, so that one call, without Python's lock,
serves all columns of all chunks. Invariants: `Columns` keeps the chunks alive and has checked their
types; `find_runs` has checked the positions.

Shapes: B batch, N dense features, F sparse features, K = N + F + 1 columns, C chunks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastdlrm.batch import Batch
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import DataError

Runs = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]
"""Consecutive rows of a chunk, shape (runs,) each: the chunk, the first row in it, the length."""

MIN_MEAN_RUN = 4
"""Rows a run, on average, from which copying runs beats copying rows."""
ROWS_AHEAD = 64
"""Rows between the one copied and the one asked of memory: what a core can have under way."""
RUNS_AHEAD = 16
"""The same for runs."""
LINE_BYTES = 64
ID_TYPES = ("uint8", "uint16", "uint32")

_UINT8, _UINT16 = np.empty(0, np.uint8), np.empty(0, np.uint16)
_UINT32, _FLOAT32 = np.empty(0, np.uint32), np.empty(0, np.float32)


class Columns:
    """The columns of all chunks: features of one number or one id, and the label if it is known.

    Args:
        chunks: Arrays by name, as long as each other within a chunk.
        schema: Names of the features.

    Raises:
        DataError: A column's type is not one that encoding gives it.
    """

    def __init__(self, chunks: Sequence[Mapping[str, NDArray[Any]]], schema: Schema) -> None:
        dense, sparse = [f.name for f in schema.dense], [f.name for f in schema.sparse]
        labelled = all("label" in chunk for chunk in chunks)
        self._chunks = chunks
        self._addresses = np.zeros((len(dense) + len(sparse) + 1, len(chunks)), dtype=np.uint64)
        for k, name in enumerate([*dense, *sparse, "label"] if labelled else [*dense, *sparse]):
            allowed = ("float32",) if name in dense else ID_TYPES if name in sparse else ("uint8",)
            _require_type(name, [chunk[name] for chunk in chunks], allowed)
            self._addresses[k] = [chunk[name].ctypes.data for chunk in chunks]
        sizes = [chunks[0][name].itemsize if chunks else 0 for name in sparse]
        self._id_bytes = np.array(sizes, dtype=np.int64)

    def gather(self, runs: "Runs", batch: Batch) -> None:
        """Copy rows into a batch on the CPU, of as many samples; an unknown label becomes NaN."""
        ids = batch.sparse.ids.numpy().reshape(len(self._id_bytes), batch.num_samples)
        _gather(
            self._addresses, self._id_bytes, runs, batch.dense.numpy(), ids, batch.labels.numpy()
        )


def _require_type(name: str, values: Sequence[NDArray[Any]], allowed: tuple[str, ...]) -> None:
    """Refuse a column that the loops would misread."""
    found = sorted({chunk.dtype.name for chunk in values})
    if len(found) > 1 or not set(found).issubset(allowed):
        raise DataError(
            f"column {name!r}: type {' and '.join(found)}; {' or '.join(allowed)}, the same in all "
            "parts, is allowed; prepare again"
        )


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


@intrinsic
def _prefetch(typing: Any, address: Any) -> Any:
    """Ask for the cache line of an address, without waiting; any address is harmless."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, keep, data = number(0), number(2), number(1)
        builder.call(prefetch, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(address), generate


@njit(cache=True, nogil=True)
def find_runs(rows: NDArray[np.int64], starts: NDArray[np.int64]) -> Runs:
    """Find the chunks of rows, and the rows that follow each other in one.

    Args:
        rows: Positions in all chunks, shape (B,).
        starts: Position of each chunk's first row, and the end, shape (C + 1,); no chunk is empty.

    Returns:
        As many runs as rows, of one row each, where runs are short on average.

    Raises:
        IndexError: A position is outside the chunks.
    """
    num_rows, num_chunks, end = len(rows), len(starts) - 1, starts[-1]
    chunk = np.empty(num_rows, np.int32)
    first = np.empty(num_rows, np.int64)
    length = np.empty(num_rows, np.int64)
    num_breaks = 0
    for i in range(num_rows):
        if rows[i] < 0 or rows[i] >= end:
            raise IndexError("a row's position is outside the split")
        num_breaks += i == 0 or rows[i] != rows[i - 1] + 1
    is_worth_joining = num_breaks * MIN_MEAN_RUN <= num_rows
    num_runs, following, following_chunk_start = 0, -1, -1
    c = 0
    for i in range(num_rows):
        row = rows[i]
        if is_worth_joining and row == following and row != following_chunk_start:
            length[num_runs - 1] += 1
        else:
            if row < starts[c] or row >= starts[c + 1]:
                c = min(int(row / end * num_chunks), num_chunks - 1)  # right if chunks are equal
                while row < starts[c]:
                    c -= 1
                while row >= starts[c + 1]:
                    c += 1
            chunk[num_runs], first[num_runs], length[num_runs] = c, row - starts[c], 1
            following_chunk_start = starts[c + 1]
            num_runs += 1
        following = row + 1
    return chunk[:num_runs], first[:num_runs], length[:num_runs]


@njit(cache=True, nogil=True)
def _gather(
    addresses: NDArray[np.uint64],
    id_bytes: NDArray[np.int64],
    runs: Runs,
    dense: NDArray[np.float32],
    ids: NDArray[np.int32],
    labels: NDArray[np.float32],
) -> None:
    """Copy rows of all columns into a batch.

    Args:
        addresses: Of each column's chunks, shape (K, C): dense features (float32), sparse features,
            label (uint8); 0 in the last row where labels are unknown.
        id_bytes: 1, 2 or 4 by sparse feature, shape (F,).
        runs: The rows, B in all.
        dense: Output, shape (B, N).
        ids: Output, shape (F, B).
        labels: Output, shape (B,).
    """
    N, F = dense.shape[1], len(ids)
    columns = np.empty((N, len(labels)), np.float32)
    for j in range(N):
        _copy(addresses[j], _FLOAT32, runs, columns[j])
    for i in range(len(labels)):
        for j in range(N):
            dense[i, j] = columns[j, i]
    for f in range(F):
        if id_bytes[f] == 1:
            _copy(addresses[N + f], _UINT8, runs, ids[f])
        elif id_bytes[f] == 2:
            _copy(addresses[N + f], _UINT16, runs, ids[f])
        else:
            _copy(addresses[N + f], _UINT32, runs, ids[f])
    if np.all(addresses[N + F] != 0):
        _copy(addresses[N + F], _UINT8, runs, labels)
    else:
        labels[:] = np.nan


@njit(cache=True, nogil=True)
def _copy(addresses: NDArray[np.uint64], like: NDArray[Any], runs: Runs, out: NDArray[Any]) -> None:
    """Copy rows of one column, whose values have the type of `like`, to `out`, shape (B,)."""
    chunk, first, length = runs
    num_runs = len(chunk)
    size = np.uint64(like.itemsize)
    if num_runs == len(out):
        for i in range(num_runs):
            ahead = min(i + ROWS_AHEAD, num_runs - 1)
            _prefetch(addresses[chunk[ahead]] + size * np.uint64(first[ahead]))
            source = _pointer(addresses[chunk[i]] + size * np.uint64(first[i]))
            out[i] = carray(source, 1, like.dtype)[0]
        return
    to = 0
    for r in range(num_runs):
        if r + RUNS_AHEAD < num_runs:
            ahead = r + RUNS_AHEAD
            line = addresses[chunk[ahead]] + size * np.uint64(first[ahead])
            end = line + size * np.uint64(length[ahead])
            while line < end:
                _prefetch(line)
                line += np.uint64(LINE_BYTES)
        source = _pointer(addresses[chunk[r]] + size * np.uint64(first[r]))
        values = carray(source, length[r], like.dtype)
        target = out[to : to + length[r]]  # a slice of its own: its loop becomes vector code
        for i in range(len(values)):
            target[i] = values[i]
        to += length[r]
