"""The tables of an exported model: one file, mapped by every process that serves it.

tables.bin holds the rows of all tables one after the other, in the model's order: row r of the
stack at r * `row_bytes`. The mapping is private: processes share the pages of the file until one
writes to a row, which changes that process's copy of the page alone, never the file.

Shapes: R rows of all tables, D embedding dim, n rows that are replaced.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from fastdlrm.batch import SparseBatch
from fastdlrm.contracts.exported import TableDtype
from fastdlrm.errors import ExportError
from fastdlrm.kernels.lookup import stack_rows
from fastdlrm.kernels.quantized_lookup import (
    QuantizedDtype,
    quantize_rows,
    quantized_lookup,
    quantized_row_bytes,
)
from fastdlrm.model.config import Init, Pooling
from fastdlrm.model.embedding import INT32_ROWS, EmbeddingTables

PLAIN: dict[TableDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHUNK_ROWS = 1 << 18


def row_bytes(dtype: TableDtype, dim: int) -> int:
    """Bytes of a row.

    Raises:
        ExportError: int4 with an odd embedding dim.
    """
    if dtype in PLAIN:
        return dim * PLAIN[dtype].itemsize
    try:
        return quantized_row_bytes(dtype, dim)  # type: ignore[arg-type]
    except ValueError as problem:
        raise ExportError(f"tables: {problem}") from problem


def write_tables(path: Path, tables: Mapping[str, Tensor], dtype: TableDtype) -> None:
    """Write all rows and sync them, some at a time: no second copy of a table is made.

    Args:
        path: The file.
        tables: By name, in the model's order, shape (num_embeddings, D).
        dtype: Of the rows on disk.

    Raises:
        ExportError: A row cannot be written in this type.
    """
    with path.open("wb") as file:
        for name, table in tables.items():
            row_bytes(dtype, table.shape[1])
            for start in range(0, len(table), CHUNK_ROWS):
                _write_rows(file, name, table[start : start + CHUNK_ROWS], dtype)
        file.flush()
        os.fsync(file.fileno())


def stored_rows(rows: Tensor, dtype: TableDtype) -> Tensor:
    """Rows as they are stored: shape (n, D) of a plain type, or (n, row bytes) of uint8.

    Raises:
        ValueError: They hold NaN or infinity and are to be quantised.
    """
    if dtype in PLAIN:
        return rows.to(PLAIN[dtype])
    return quantize_rows(rows, dtype)  # type: ignore[arg-type]


def _write_rows(file: BinaryIO, table: str, rows: Tensor, dtype: TableDtype) -> None:
    try:
        stored = stored_rows(rows.cpu(), dtype)
    except ValueError as problem:
        raise ExportError(f"table {table!r}: {problem}") from problem
    file.write(stored.contiguous().view(torch.uint8).numpy().data)


def map_stack(path: Path, num_rows: int, dim: int, dtype: TableDtype) -> Tensor:
    """The file's rows, mapped: shape (R, D) of a plain type, or (R, row bytes) of uint8.

    Raises:
        ExportError: The file has another size.
    """
    wanted = num_rows * row_bytes(dtype, dim)
    found = path.stat().st_size if path.is_file() else 0
    if found != wanted:
        raise ExportError(
            f"{path}: {found} bytes, {num_rows} rows of {dim} {dtype} numbers take {wanted}; "
            "export the model again"
        )
    kind = PLAIN.get(dtype, torch.uint8)
    if not wanted:
        return torch.empty(0, dim, dtype=kind)
    count = wanted // kind.itemsize
    flat = torch.from_file(str(path), shared=False, size=count, dtype=kind)
    return flat.view(num_rows, -1)


class QuantizedTables(nn.Module):
    """T tables in few bits; otherwise as `EmbeddingTables`.

    Attributes:
        weight: The stack, shape (R, row bytes), uint8.
        num_embeddings: Rows by table, in stack order.
    """

    def __init__(
        self,
        num_embeddings: Mapping[str, int],
        feature_tables: Sequence[str],
        *,
        stack: Tensor,
        dtype: QuantizedDtype,
        pooling: Pooling = "sum",
    ) -> None:
        """Take a stack as it is.

        Args:
            num_embeddings: Rows by table.
            feature_tables: The table of each sparse feature, in the batch's order.
            stack: All rows.
            dtype: Of the rows.
            pooling: How the rows of a bag become one vector.
        """
        super().__init__()
        self.num_embeddings = dict(num_embeddings)
        self.weight = stack
        self._dtype = dtype
        self._pooling = pooling
        starts = table_starts(num_embeddings)
        kind = torch.int32 if len(stack) <= INT32_ROWS else torch.int64
        places = [starts[table] for table in feature_tables]
        self._feature_starts = torch.tensor(places, dtype=kind, device=stack.device)

    def forward(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        """Look up and pool a batch, shape (B, F, D), a view of (F, B, D); float32 unless asked."""
        rows = stack_rows(sparse.ids, sparse.lengths, self._feature_starts)
        pooled = quantized_lookup(
            self.weight,
            rows,
            None if sparse.lengths is None else sparse.offsets(),
            sparse.weights,
            self._pooling,
            dtype or torch.float32,
            row_dtype=self._dtype,
        )
        F, B = len(self._feature_starts), sparse.num_samples
        return pooled.view(F, B, pooled.shape[1]).transpose(0, 1)

    def initialise(self, init: Init, generator: torch.Generator, std: float = 0.01) -> None:
        """Nothing is drawn in few bits.

        Raises:
            ExportError: Always.
        """
        raise ExportError("quantised tables cannot be drawn; export those of a trained model")

    def state_tensors(self) -> dict[str, Tensor]:
        """Each table's rows as they are stored, live."""
        starts = table_starts(self.num_embeddings)
        return {n: self.weight[starts[n] : starts[n] + r] for n, r in self.num_embeddings.items()}


def stored_tables(
    path: Path,
    num_embeddings: Mapping[str, int],
    feature_tables: Sequence[str],
    *,
    dim: int,
    dtype: TableDtype,
    pooling: Pooling,
    device: torch.device | str = "cpu",
) -> EmbeddingTables | QuantizedTables:
    """The tables of a file: mapped on the CPU, copied to a GPU.

    Args:
        path: Made by `write_tables`.
        num_embeddings: Rows by table.
        feature_tables: The table of each sparse feature, in the batch's order.
        dim: D.
        dtype: Of the rows.
        pooling: How the rows of a bag become one vector.
        device: Where it computes.

    Raises:
        ExportError: The file has another size.
    """
    stack = map_stack(path, sum(num_embeddings.values()), dim, dtype).to(device)
    if dtype in PLAIN:
        return EmbeddingTables(
            num_embeddings, feature_tables, embedding_dim=dim, pooling=pooling, stack=stack
        ).requires_grad_(False)
    return QuantizedTables(
        num_embeddings,
        feature_tables,
        stack=stack,
        dtype=dtype,  # type: ignore[arg-type]
        pooling=pooling,
    )


def table_starts(num_embeddings: Mapping[str, int]) -> dict[str, int]:
    """Row of the stack where each table begins."""
    starts, total = {}, 0
    for name, rows in num_embeddings.items():
        starts[name] = total
        total += rows
    return starts
