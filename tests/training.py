"""Small models, batches and settings of a train step: the same numbers on every device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.lookup import Tables
from fastdlrm.model.mixed_tables import MixedTables, WidthGroup, joined_stacks, width_groups
from fastdlrm.model.mlp import build_mlp
from fastdlrm.model.pooling import TablePooling
from fastdlrm.model.table_projection import Projected, TableProjection
from fastdlrm.train.config import (
    DenseOptimizerConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
    TrainConfig,
)
from fastdlrm.train.sparse_optimizer import StackLookup
from fastdlrm.train.step import TrainStep
from tests.interactions import make_interaction

BATCH_SIZE = 48
NUM_DENSE = 5
DIM = 8
TABLES = {"a": 100, "b": 7}
FEATURES = ("a", "b", "a")  # features 0 and 2 share a table


def pooling_of(name: str) -> TablePooling:
    """sum, mean, or mixed: table a's bags are averaged, b's added up."""
    return {"a": "mean", "b": "sum"} if name == "mixed" else name


def make_model(
    interaction: str = "dot",
    *,
    num_dense: int = NUM_DENSE,
    pooling: str = "sum",
    learns_weights: bool = False,
    table_dtype: torch.dtype = torch.float32,
    norm: str = "none",
    dropout: float = 0.0,
    tables: Tables | None = None,
    projected: Mapping[str, int] | None = None,
) -> DLRM:
    """A DLRM of few numbers, in training mode; with tables of its own unless others are given.

    Vectors of tables in `projected` are of so many columns, and projected.
    """
    generator = torch.Generator().manual_seed(0)
    if tables is None:
        tables = EmbeddingTables(
            TABLES, FEATURES, embedding_dim=DIM, pooling=pooling_of(pooling), dtype=table_dtype
        )
    tables.initialise("normal", generator, 0.3)
    if learns_weights:
        tables.learn_weights()
    changes = {"norm": norm, "dropout": dropout, "generator": generator}
    bottom = build_mlp(num_dense, (20, DIM), **changes) if num_dense else None
    join = make_interaction(interaction, len(FEATURES), DIM, num_dense > 0, generator)
    top = build_mlp(join.width, (32, 12), out_features=1, **changes)
    projection = None
    if projected:
        number = {table: k for k, table in enumerate(projected)}
        features = [
            Projected(f, number[table], projected[table])
            for f, table in enumerate(FEATURES)
            if table in projected
        ]
        projection = TableProjection(features, DIM, generator)
    return DLRM(tables, bottom, join, top, projection).train()


def mixed_tables(
    dims: Mapping[str, int], table_dtype: torch.dtype = torch.float32, pooling: str = "sum"
) -> MixedTables[EmbeddingTables]:
    """Tables of `TABLES` of widths of their own."""

    def stack(group: WidthGroup) -> EmbeddingTables:
        return EmbeddingTables(
            group.num_embeddings,
            group.feature_tables,
            embedding_dim=group.width,
            pooling=pooling_of(pooling),
            dtype=table_dtype,
        )

    groups = width_groups(TABLES, FEATURES, dims, DIM)
    return joined_stacks(TABLES, DIM, groups, [stack(group) for group in groups])


def single_ids(seed: int, num_samples: int = BATCH_SIZE, num_dense: int = NUM_DENSE) -> Batch:
    """One id a bag, in one buffer; a label is 1 where the id of feature 1 is odd."""
    generator = torch.Generator().manual_seed(seed)
    batch = Batch.allocate(num_samples, num_dense, len(FEATURES))
    ids = [_draw(generator, TABLES[table], num_samples) for table in FEATURES]
    batch.sparse.ids.copy_(torch.cat(ids))
    batch.dense.copy_(torch.randn(num_samples, num_dense, generator=generator))
    batch.labels.copy_(ids[1] % 2)
    return batch


def bags(seed: int, *, is_weighted: bool = False, num_samples: int = BATCH_SIZE) -> Batch:
    """Bags of 0 to 4 ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = _draw(generator, 5, len(FEATURES) * num_samples)
    sizes = lengths.view(len(FEATURES), -1).sum(1).tolist()
    drawn = zip(FEATURES, sizes, strict=True)
    ids = torch.cat([_draw(generator, TABLES[table], size) for table, size in drawn])
    return Batch(
        dense=torch.randn(num_samples, NUM_DENSE, generator=generator),
        sparse=SparseBatch(
            ids=ids,
            lengths=lengths,
            weights=torch.rand(len(ids), generator=generator) if is_weighted else None,
            num_features=len(FEATURES),
        ),
        labels=_draw(generator, 2, num_samples).float(),
    )


def make_config(
    dense: str = "sgd", sparse: str = "sgd", *, learning_rate: float = 0.05, **changes: object
) -> TrainConfig:
    """A large eps: the first steps of Adagrad and Adam are sign(g), which magnifies rounding."""
    settings = {
        "global_batch_size": BATCH_SIZE,
        "num_epochs": 1,
        "dense_optimizer": DenseOptimizerConfig(
            name=dense, learning_rate=learning_rate, eps=1e-2, weight_decay=0.01
        ),
        "sparse_optimizer": SparseOptimizerConfig(
            name=sparse, learning_rate=learning_rate, eps=1e-2, l2=0.01
        ),
        "schedule": ScheduleConfig(name="constant", warmup_steps=4),
    }
    return TrainConfig(**(settings | changes))


def take(step: TrainStep, batches: Sequence[Batch], first: int = 0) -> Tensor:
    """Take steps; their losses, on the CPU."""
    losses = [step(batch, first + k) for k, batch in enumerate(batches)]
    return torch.stack(losses).cpu()


def look_up(model: DLRM, batch: Batch) -> StackLookup:
    """A batch's lookup in a model's tables."""
    return StackLookup(model.tables, batch.sparse, model.tables.rows(batch.sparse))


def state_of(step: TrainStep) -> dict[str, Tensor]:
    """A copy on the CPU of all that a checkpoint keeps of a step."""
    groups = {
        "model": step.model.state_tensors(),
        "sparse": step.sparse_optimizer.state_tensors(),
        "dense": step.dense_optimizer.state_tensors(),
    }
    return {
        f"{group}.{name}": tensor.detach().to("cpu", copy=True)
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def restore(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors over live ones of the same names."""
    assert live.keys() == saved.keys()
    for name, tensor in live.items():
        with torch.no_grad():
            tensor.copy_(saved[name])


def _draw(generator: torch.Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)
