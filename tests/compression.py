"""Compressed tables beside the whole tables that they stand for."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdlrm.model.composition import (
    Composition,
    Halves,
    Product,
    hashed,
    plain,
    quotient_remainder,
)
from fastdlrm.model.compressed import CompressedTables, Compression
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.mixed_tables import MixedTables, joined_stacks, width_groups
from fastdlrm.model.pooling import TablePooling, by_feature

KINDS = {
    "hash": lambda table, n: hashed(table, n, max(n // 3, 1), 2),
    "add": lambda table, n: quotient_remainder(table, n, 3, "add"),
    "mult": lambda table, n: quotient_remainder(table, n, 3, "mult"),
    "concat": lambda table, n: quotient_remainder(table, n, 3, "concat"),
    "plain": plain,
}


def make_compressed(
    sizes: Mapping[str, int],
    features: Sequence[str],
    kinds: Mapping[str, str],
    dim: int,
    pooling: TablePooling = "sum",
) -> tuple[CompressedTables, dict[str, Composition]]:
    """Tables in this process, not drawn; how each is made."""
    made = {name: KINDS[kinds[name]](name, n) for name, n in sizes.items()}
    rows = {held: n for each in made.values() for held, n in each.num_embeddings.items()}
    dims = {held: dim // each.num_pieces for each in made.values() for held in each.num_embeddings}
    parts = [part for feature in features for part in made[feature].parts]
    of_parts = (
        pooling
        if isinstance(pooling, str)
        else {held: pooling[name] for name, each in made.items() for held in each.num_embeddings}
    )
    groups = width_groups(rows, parts, dims, dim)
    stacks = [
        EmbeddingTables(
            group.num_embeddings, group.feature_tables, embedding_dim=group.width, pooling=of_parts
        )
        for group in groups
    ]
    tables = joined_stacks(rows, dim, groups, stacks)
    rules = by_feature(pooling, features)
    compression = Compression([made[feature] for feature in features], rules)
    return CompressedTables(tables, compression), made


def materialised(state: Mapping[str, Tensor], made: Composition, num_ids: int) -> Tensor:
    """The whole table, a row for every id, row by row; differentiable in what lies in memory."""
    rows = []
    for row in range(num_ids):
        ids = made.ids(torch.tensor([row]))
        parts = [state[name][int(part)] for name, part in zip(made.parts, ids, strict=True)]
        if isinstance(made.join, Halves):
            rows.append(torch.cat(parts))
        else:
            stacked = torch.stack(parts)
            rows.append(stacked.prod(0) if isinstance(made.join, Product) else stacked.sum(0))
    return torch.stack(rows)


def gradients(tables: CompressedTables) -> dict[str, Tensor]:
    """By table in memory, what autograd left of it."""
    inner = tables.tables
    stacks = inner.stacks if isinstance(inner, MixedTables) else [inner]
    return {
        name: stack.of_table(name, stack.weight.grad)
        for stack in stacks
        if stack.weight.grad is not None
        for name in stack.num_embeddings
    }
