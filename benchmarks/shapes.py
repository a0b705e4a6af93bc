"""The models that the benchmarks of training and inference run, by name, and their inputs.

Shapes: B batch, F sparse features, R rows of all tables, D embedding dim.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from fastdlrm.batch import Batch
from fastdlrm.data.random import RandomShape, draw_batch
from fastdlrm.data.synthetic import IdConfig
from fastdlrm.model.build import build_interaction
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.interaction import Interaction, Vectors
from fastdlrm.model.lookup import Tables
from fastdlrm.model.mlp import build_mlp
from fastdlrm.train.config import (
    DenseOptimizerConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
    TrainConfig,
)

KAGGLE_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
"""Distinct values a feature of Criteo Kaggle."""

TERABYTE_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
"""Distinct values a feature of Criteo Terabyte, as MLPerf counts them."""

MULTI_HOT = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Ids a bag of MLPerf's DLRM-DCNv2, 214 in all."""

SparseRule = Literal["sgd", "rowwise_adagrad"]
Precision = Literal["fp32", "tf32", "bf16"]
LEARNING_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model and the statistics of its input.

    Attributes:
        name: On the command line.
        rows: Of each table; one feature a table.
        dim: D.
        num_dense: Dense features.
        bottom: Widths of the bottom MLP, its input left out.
        top: Hidden widths of the top MLP.
        ids_per_bag: Of the bags of each feature, or of every bag.
        is_skewed: floor(rows * u^3) for uniform u; else uniform ids.
        sparse_rule: Optimizer of the tables unless the command line names one.
        num_cross_layers: Of a cross network; 0: dot products.
        cross_rank: Of its layers.
    """

    name: str
    rows: tuple[int, ...]
    dim: int
    num_dense: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    ids_per_bag: int | tuple[int, ...] = 1
    is_skewed: bool = False
    sparse_rule: SparseRule = "sgd"
    num_cross_layers: int = 0
    cross_rank: int = 0

    @property
    def num_embeddings(self) -> dict[str, int]:
        """Rows by table."""
        return {f"t{index}": rows for index, rows in enumerate(self.rows)}

    @property
    def bag_sizes(self) -> tuple[int, ...]:
        """Ids a bag, by feature."""
        sizes = self.ids_per_bag
        return sizes if isinstance(sizes, tuple) else (sizes,) * len(self.rows)

    def interaction(self, generator: torch.Generator | None = None) -> Interaction:
        """The interaction; without a generator it has no numbers."""
        config = ModelConfig(
            embedding_dim=self.dim,
            bottom_mlp=self.bottom,
            top_mlp=self.top,
            interaction="cross" if self.num_cross_layers else "dot",
            num_cross_layers=self.num_cross_layers,
            cross_rank=self.cross_rank,
        )
        return build_interaction(config, Vectors(len(self.rows), self.dim, True), generator)

    @property
    def top_input(self) -> int:
        """Width of the interaction's result."""
        return self.interaction().width


def _capped(rows: tuple[int, ...], cap: int) -> tuple[int, ...]:
    return tuple(min(count, cap) for count in rows)


def _dcnv2(name: str, cap: int) -> Shape:
    """MLPerf's DLRM-DCNv2 with smaller tables; at 10 M rows they take 28 GB and fit one card."""
    return Shape(
        name=name,
        rows=_capped(TERABYTE_ROWS, cap),
        dim=128,
        num_dense=13,
        bottom=(512, 256, 128),
        top=(1024, 1024, 512, 256),
        ids_per_bag=MULTI_HOT,
        sparse_rule="rowwise_adagrad",
        num_cross_layers=3,
        cross_rank=512,
    )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="criteo-kaggle-1m",
            rows=_capped(KAGGLE_ROWS, 1_000_000),
            dim=16,
            num_dense=13,
            bottom=(512, 256, 64, 16),
            top=(512, 256),
        ),
        Shape(
            name="mlperf-100k",
            rows=_capped(TERABYTE_ROWS, 100_000),
            dim=128,
            num_dense=13,
            bottom=(512, 256, 128),
            top=(1024, 1024, 512, 256),
        ),
        Shape(
            name="rmc2-small",
            rows=(500_000,) * 16,
            dim=32,
            num_dense=256,
            bottom=(128, 32),
            top=(512, 128),
            ids_per_bag=100,
        ),
        Shape(
            name="criteo-terabyte-10m",
            rows=_capped(TERABYTE_ROWS, 10_000_000),
            dim=128,
            num_dense=13,
            bottom=(512, 256, 128),
            top=(1024, 1024, 512, 256),
            is_skewed=True,
            sparse_rule="rowwise_adagrad",
        ),
        _dcnv2("mlperf-dcnv2-100k", 100_000),
        _dcnv2("mlperf-dcnv2-10m", 10_000_000),
    )
}


def train_config(
    size: int, precision: Precision, sparse_rule: SparseRule = "rowwise_adagrad"
) -> TrainConfig:
    """What the benchmarks train with: SGD on the MLPs, a constant learning rate.

    Args:
        size: Samples a step.
        precision: Of the products.
        sparse_rule: Optimizer of the tables.
    """
    return TrainConfig(
        global_batch_size=size,
        num_epochs=1,
        dense_optimizer=DenseOptimizerConfig(name="sgd", learning_rate=LEARNING_RATE),
        sparse_optimizer=SparseOptimizerConfig(name=sparse_rule, learning_rate=LEARNING_RATE),
        schedule=ScheduleConfig(name="constant"),
        precision=precision,
    )


def build_model(shape: Shape, device: torch.device) -> DLRM:
    """A model with drawn weights; the tables are made straight on the device."""
    sizes = shape.num_embeddings
    tables = EmbeddingTables(sizes, list(sizes), embedding_dim=shape.dim, device=device)
    tables.initialise("reference", torch.Generator(device).manual_seed(0))
    return around(shape, tables, device)


def around(shape: Shape, tables: Tables, device: torch.device) -> DLRM:
    """A model with given tables and drawn MLPs."""
    generator = torch.Generator().manual_seed(0)
    bottom = build_mlp(shape.num_dense, shape.bottom, generator=generator)
    join = shape.interaction(generator)
    top = build_mlp(join.width, shape.top, out_features=1, generator=generator)
    return DLRM(tables, bottom.to(device), join.to(device), top.to(device))


def draw_batches(
    shape: Shape, size: int, count: int, device: torch.device, seed: int = 1
) -> list[Batch]:
    """Random batches, made on the device.

    Args:
        shape: Of the input.
        size: B.
        count: Of batches.
        device: Where.
        seed: Of the stream.
    """
    generator = torch.Generator(device).manual_seed(seed)
    distribution = "cubic" if shape.is_skewed else "uniform"
    ids = tuple(
        IdConfig(distribution=distribution, min_ids=size, max_ids=size) for size in shape.bag_sizes
    )
    drawn = RandomShape(num_dense=shape.num_dense, tables=shape.rows, ids=ids)

    def uniforms(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator, device=device)

    return [draw_batch(drawn, size, uniforms) for _ in range(count)]
