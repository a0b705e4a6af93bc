"""The tables of an exported model: one file, mapped by every process that serves it.

tables.bin holds the rows of all tables one after the other, in the model's order; where tables
differ in width the widest come first. So the rows of one width are a stack, whose row r lies
r * `row_bytes` behind its first. The mapping is private: processes share the pages of the file
until one writes to a row, which changes that process's copy of the page alone, never the file.

Shapes: R rows of all tables of one width, D embedding dim, d columns of a table, n rows that are
replaced.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.contracts.exported import TableDtype
from fastdlrm.errors import ExportError
from fastdlrm.kernels.quantized_lookup import (
    QuantizedDtype,
    dequantize_rows,
    dim_of,
    quantize_rows,
    quantized_lookup,
    quantized_row_bytes,
)
from fastdlrm.model.config import Init, ModelConfig
from fastdlrm.model.embedding import Draw, EmbeddingTables, StackedTables
from fastdlrm.model.layout import Layout
from fastdlrm.model.mixed_tables import MixedTables, joined_stacks, width_groups
from fastdlrm.model.pooling import TablePooling

PLAIN: dict[TableDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTIZED: dict[TableDtype, QuantizedDtype] = {"int8": "int8", "int4": "int4"}

CHUNK_ROWS = 1 << 16
"""Rows that are converted at a time."""


def row_bytes(dtype: TableDtype, dim: int) -> int:
    """Bytes of a row.

    Raises:
        ExportError: int4 with an odd embedding dim.
    """
    if dtype in PLAIN:
        return dim * PLAIN[dtype].itemsize
    try:
        return quantized_row_bytes(QUANTIZED[dtype], dim)
    except ValueError as problem:
        raise ExportError(f"tables: {problem}") from problem


def write_tables(path: Path, tables: Mapping[str, Tensor], dtype: TableDtype) -> None:
    """Write all rows and sync them, some at a time: no second copy of a table is made.

    Args:
        path: The file.
        tables: By name, in the model's order, shape (num_embeddings, d), on any device.
        dtype: Of the rows on disk.

    Raises:
        ExportError: A row cannot be written in this type.
    """
    with path.open("wb") as file:
        for name, table in sorted(tables.items(), key=lambda item: -item[1].shape[1]):
            row_bytes(dtype, table.shape[1])
            for start in range(0, len(table), CHUNK_ROWS):
                _write_rows(file, name, start, table[start : start + CHUNK_ROWS], dtype)
        file.flush()
        os.fsync(file.fileno())


def tables_bytes(tables: Mapping[str, Tensor], dtype: TableDtype) -> int:
    """Size of the file that `write_tables` makes of them."""
    return sum(len(table) * row_bytes(dtype, table.shape[1]) for table in tables.values())


def stored_rows(rows: Tensor, dtype: TableDtype) -> Tensor:
    """Rows as they are stored: shape (n, D) of a plain type, or (n, row bytes) of uint8.

    Raises:
        ValueError: A row holds NaN, infinity or a number beyond what `dtype` can hold.
    """
    if dtype in QUANTIZED:
        return quantize_rows(rows, QUANTIZED[dtype])
    stored = rows.to(PLAIN[dtype])
    is_sound = torch.isfinite(stored).all(1)
    if not is_sound.all():
        row = int(is_sound.logical_not().nonzero()[0, 0])
        raise ValueError(f"row {row} holds NaN or infinity; train again")
    return stored


def plain_rows(stored: Tensor, dtype: TableDtype) -> Tensor:
    """The numbers that stored rows stand for, shape (n, D), float32.

    Args:
        stored: As `stored_rows` gives them, or some of `map_stack`.
        dtype: Of the rows.
    """
    return dequantize_rows(stored, QUANTIZED[dtype]) if dtype in QUANTIZED else stored.float()


def _write_rows(file: BinaryIO, table: str, start: int, rows: Tensor, dtype: TableDtype) -> None:
    try:
        stored = stored_rows(rows.cpu(), dtype)
    except ValueError as problem:
        raise ExportError(f"table {table!r}, rows from {start} on: {problem}") from problem
    file.write(stored.contiguous().view(torch.uint8).numpy().data)


def map_stacks(path: Path, shapes: Sequence[tuple[int, int]], dtype: TableDtype) -> list[Tensor]:
    """The file's rows, mapped.

    Args:
        path: Made by `write_tables`.
        shapes: R and d of each width, as they lie in the file.
        dtype: Of the rows.

    Returns:
        A stack a width, shape (R, d) of a plain type, or (R, row bytes) of uint8.

    Raises:
        ExportError: The file is missing or has another size.
    """
    sizes = [num_rows * row_bytes(dtype, dim) for num_rows, dim in shapes]
    found = path.stat().st_size if path.is_file() else 0
    if found != sum(sizes):
        rows = " and ".join(f"{num_rows} rows of {dim}" for num_rows, dim in shapes)
        raise ExportError(
            f"{path}: {found} bytes, {rows} {dtype} numbers take {sum(sizes)}; "
            "export the model again"
        )
    whole = torch.empty(0, dtype=torch.uint8)
    if found:
        whole = torch.from_file(str(path), shared=False, size=found, dtype=torch.uint8)
    kind = PLAIN.get(dtype, torch.uint8)
    return [
        part.view(kind).view(num_rows, row_bytes(dtype, dim) // kind.itemsize)
        for part, (num_rows, dim) in zip(whole.split(sizes), shapes, strict=True)
    ]


class QuantizedTables(StackedTables):
    """Tables in few bits, which are looked up and replaced row by row, never trained.

    Attributes:
        weight: The stack, shape (R, row bytes), uint8.
        dtype: Of the rows.
        embedding_dim: D.
    """

    def __init__(
        self,
        num_embeddings: Mapping[str, int],
        feature_tables: Sequence[str],
        *,
        stack: Tensor,
        dtype: QuantizedDtype,
        pooling: TablePooling = "sum",
    ) -> None:
        """Take a stack as it is.

        Args:
            num_embeddings: Rows by table.
            feature_tables: The table of each sparse feature, in the batch's order.
            stack: All rows.
            dtype: Of the rows.
            pooling: How the rows of a bag become one vector.
        """
        super().__init__(num_embeddings, feature_tables, pooling=pooling, device=stack.device)
        self.dtype = dtype
        self.embedding_dim = dim_of(stack, dtype == "int4")
        self.register_buffer("weight", stack, persistent=False)

    def forward(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        """Look up and pool a batch.

        Args:
            sparse: F features of B samples.
            dtype: Of the result; None: float32.

        Returns:
            Shape (B, F, D), a view of (F, B, D).
        """
        pooled = quantized_lookup(
            self.weight,
            self.rows(sparse),
            None if sparse.lengths is None else sparse.offsets(),
            self.weighted(sparse).weights,
            self.pooling,
            dtype or torch.float32,
            row_dtype=self.dtype,
        )
        return self.by_sample(pooled, sparse)

    def draw(
        self, name: str, how: Draw, init: Init, generator: torch.Generator, std: float
    ) -> None:
        """Nothing is drawn in few bits.

        Raises:
            ExportError: Always.
        """
        raise ExportError(
            f"tables of {self.dtype} cannot be drawn; train in fp32 or bf16, then export"
        )


StoredStack = EmbeddingTables | QuantizedTables
StoredTables = StoredStack | MixedTables[StoredStack]
"""What serves rows of a file: one stack, or one a width."""


def stored_tables(
    path: Path,
    num_embeddings: Mapping[str, int],
    feature_tables: Sequence[str],
    *,
    dim: int,
    dims: Mapping[str, int] | None = None,
    dtype: TableDtype,
    pooling: TablePooling,
    device: torch.device | str = "cpu",
) -> StoredTables:
    """The tables of a file: mapped on the CPU, copied to a GPU.

    Args:
        path: Made by `write_tables`.
        num_embeddings: Rows by table.
        feature_tables: The table of each sparse feature, in the batch's order.
        dim: D.
        dims: d by table; None: all are of D columns.
        dtype: Of the rows.
        pooling: How the rows of a bag become one vector.
        device: Where it computes.

    Raises:
        ExportError: The file is missing or has another size.
    """
    dims = dict.fromkeys(num_embeddings, dim) if dims is None else dims
    groups = width_groups(num_embeddings, feature_tables, dims, dim)
    shapes = [(sum(group.num_embeddings.values()), group.width) for group in groups]
    stacks: list[StoredStack] = []
    for group, mapped in zip(groups, map_stacks(path, shapes, dtype), strict=True):
        sizes, used, rows = group.num_embeddings, group.feature_tables, mapped.to(device)
        if dtype in QUANTIZED:
            few = QUANTIZED[dtype]
            stacks.append(QuantizedTables(sizes, used, stack=rows, dtype=few, pooling=pooling))
        else:
            plain = EmbeddingTables(
                sizes, used, embedding_dim=group.width, pooling=pooling, stack=rows
            )
            stacks.append(plain.requires_grad_(False))
    return joined_stacks(num_embeddings, dim, groups, stacks)


def open_tables(
    path: Path,
    config: ModelConfig,
    layout: Layout,
    dtype: TableDtype,
    device: torch.device | str = "cpu",
) -> StoredTables:
    """`stored_tables` of a model.

    Args:
        path: Made by `write_tables`.
        config: The model's shape.
        layout: Its tables in memory.
        dtype: Of the rows.
        device: Where it computes.

    Raises:
        ExportError: The file is missing or has another size.
    """
    return stored_tables(
        path,
        layout.num_embeddings,
        layout.feature_tables,
        dim=config.embedding_dim,
        dims=layout.dims,
        dtype=dtype,
        pooling=layout.pooling,
        device=device,
    )


@torch.no_grad()
def replace_rows(tables: StoredTables, table: str, ids: Tensor, rows: Tensor) -> None:
    """Put rows in the place of others, in this process alone: the file stays as it is.

    Args:
        tables: Of `stored_tables`.
        table: Whose rows.
        ids: Rows of the table, shape (n,), distinct.
        rows: Their numbers, shape (n, d), floating point.

    Raises:
        ExportError: There is no such table or row, or the rows do not fit it; nothing is replaced.
    """
    size = tables.num_embeddings.get(table)
    if size is None:
        known = ", ".join(tables.num_embeddings)
        raise ExportError(f"no table {table!r}; {known} are there: bring rows of one of them")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ExportError(
            f"table {table!r}: rows {int(ids.min())} to {int(ids.max())} are to be replaced, it "
            f"has rows 0 to {size - 1}; export the model again to add rows"
        )
    stack = tables.stack_of(table) if isinstance(tables, MixedTables) else tables
    place = stack.table(table)
    if rows.shape != (len(ids), stack.embedding_dim):
        raise ExportError(
            f"table {table!r}: rows of shape {tuple(rows.shape)} for {len(ids)} ids; one row of "
            f"{stack.embedding_dim} numbers an id is needed"
        )
    try:
        stored = stored_rows(rows.cpu(), table_dtype(stack))
    except ValueError as problem:
        raise ExportError(f"table {table!r}, rows to replace: {problem}") from problem
    place.index_copy_(0, ids.to(place.device, torch.int64), stored.to(place.device))


def table_dtype(tables: StoredStack) -> TableDtype:
    """Of the rows of stored tables."""
    if isinstance(tables, QuantizedTables):
        return tables.dtype
    return "fp32" if tables.weight.dtype == torch.float32 else "bf16"
