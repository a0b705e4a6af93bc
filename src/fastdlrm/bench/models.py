"""Preset -> a model with drawn weights and random batches, its tables as short as asked for.

Shapes: B batch, R rows of a table, D embedding dim.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
import torch

from fastdlrm.batch import Batch
from fastdlrm.config import load_config
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.random import RandomBatches, RandomShape
from fastdlrm.data.random_dataset import random_encoding
from fastdlrm.errors import ConfigError
from fastdlrm.kernels.cpu.matmul import apply, calibrate
from fastdlrm.kernels.registry import Way
from fastdlrm.model.build import build_dlrm, require_fit
from fastdlrm.model.compression_config import CompressionConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.parallel.topology import free_host_bytes
from fastdlrm.train.device import resolve_device
from fastdlrm.train.recipe import Recipe

MIN_ROWS = 3
"""Of a table, however small the scale: what random data asks for."""

NUM_BATCHES = 16
"""Inputs that take turns: one batch again and again would find its rows in the cache."""

TABLE_SHARE = 0.8
"""Of the free memory that tables may take."""

_TABLE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A model to be measured.

    Attributes:
        name: Preset or file.
        recipe: Resolved; its tables are scaled.
        rows_scale: By which they are.
        schema: Of the features.
        shape: Of a batch.
        device: Where it computes.
    """

    name: str
    recipe: Recipe
    rows_scale: float
    schema: Schema
    shape: RandomShape
    device: torch.device

    @classmethod
    def load(
        cls, name: str, *, rows_scale: float = 1.0, device: str = "auto", overrides: Sequence[str]
    ) -> "BenchModel":
        """Read a preset and scale its tables.

        Args:
            name: A preset, or a TOML file.
            rows_scale: Factor on each table's rows, above 0 and up to 1.
            device: auto, cpu or cuda.
            overrides: As for `load_config`.

        Raises:
            ConfigError: A key is wrong, the features do not suit random data, or the scale is out
                of range, or there is no such device.
        """
        if not 0 < rows_scale <= 1:
            raise ConfigError(f"--rows-scale {rows_scale:g}: above 0 and up to 1 is allowed")
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {device!r}: auto, cpu or cuda is allowed")
        recipe = scaled(load_config(name, Recipe, overrides), rows_scale)
        schema = recipe.data.schema()
        require_fit(recipe.model, schema)
        if recipe.model.compression != CompressionConfig():
            raise ConfigError(
                f"--config {name}: model.compression is set; bench measures tables with a row for "
                "every id: take that section out"
            )
        if recipe.model.table_dims or recipe.model.mixed_dims:
            raise ConfigError(
                f"--config {name}: model.table_dims or mixed_dims is set; bench measures tables of "
                "one width: take it out"
            )
        return cls(
            name=name,
            recipe=recipe,
            rows_scale=rows_scale,
            schema=schema,
            shape=RandomShape.of(schema, recipe.random),
            device=resolve_device(device),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.bfloat16 if self.recipe.train.precision == "bf16" else torch.float32

    @property
    def table_dtype(self) -> torch.dtype:
        """Of the rows of tables."""
        return _TABLE_DTYPES[self.recipe.train.table_dtype]

    @property
    def row_bytes(self) -> int:
        """Of a row of a table."""
        return self.recipe.model.embedding_dim * self.table_dtype.itemsize

    @property
    def table_bytes(self) -> int:
        """Of all tables."""
        encoding = random_encoding(self.schema)
        return self.row_bytes * sum(table.num_embeddings for table in encoding.tables.values())

    def build(self) -> DLRM:
        """The model, with drawn weights.

        Raises:
            ConfigError: Its tables do not fit the device's free memory.
        """
        require_memory(self.table_bytes, free_bytes(self.device), self.rows_scale)
        return build_dlrm(
            self.recipe.model,
            self.schema,
            random_encoding(self.schema),
            self.recipe.seed,
            table_dtype=self.table_dtype,
            device=self.device,
        )

    def batches(self, batch_size: int, count: int = NUM_BATCHES, job: int = 0) -> list[Batch]:
        """Random batches on the device.

        Args:
            batch_size: B.
            count: How many.
            job: Of several at once; each has numbers of its own.
        """
        drawn = RandomBatches(
            shape=self.shape,
            batch_size=batch_size,
            seed=self.recipe.seed,
            split=f"bench {batch_size}" + (f" job {job}" if job else ""),
            device=self.device,
        )
        return [drawn[index] for index in range(count)]

    def settle_products(self, found: str | None = None) -> str:
        """Compute float32 products as `train` would choose to, and say how.

        Args:
            found: What another process found here.
        """
        if self.device.type == "cpu":
            return apply(calibrate().way if found is None else cast(Way, found))
        precision = "high" if self.recipe.train.precision == "tf32" else "highest"
        torch.set_float32_matmul_precision(precision)
        return self.recipe.train.precision


def scaled(recipe: Recipe, rows_scale: float) -> Recipe:
    """A recipe whose tables have fewer rows.

    Args:
        recipe: As it was read.
        rows_scale: Factor on `max_rows` of each group of sparse features; a table keeps 3 at least.
    """
    groups = tuple(
        msgspec.structs.replace(group, max_rows=scaled_rows(group.max_rows, rows_scale))
        for group in recipe.data.sparse
    )
    data = msgspec.structs.replace(recipe.data, sparse=groups)
    return msgspec.structs.replace(recipe, data=data)


def scaled_rows(rows: int, rows_scale: float) -> int:
    """Of one table; 0, which stands for no limit, stays."""
    return max(MIN_ROWS, math.ceil(rows * rows_scale)) if rows and rows_scale != 1 else rows


def require_memory(needed: int, free: int | None, rows_scale: float, what: str = "tables") -> None:
    """Refuse tables that do not fit.

    Args:
        needed: Their bytes.
        free: Of the device; None where that is not known.
        rows_scale: That made them so large.
        what: They are, in words.

    Raises:
        ConfigError: They do not fit.
    """
    if free is None or needed <= TABLE_SHARE * free:
        return
    fits = rows_scale * TABLE_SHARE * free / needed
    digits = 10.0 ** (math.floor(math.log10(fits)) - 1)
    fits = math.floor(fits / digits) * digits
    raise ConfigError(
        f"{what} take {needed / 2**30:.2f} GiB at rows_scale {rows_scale:g}, of "
        f"{free / 2**30:.2f} GiB free memory {TABLE_SHARE:.0%} may be used; "
        f"give --rows-scale {fits:.2g} or less"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free; None where that is not known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
