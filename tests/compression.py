"""Compressed tables beside the whole tables that they stand for."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdlrm.model.composition import Composition, Product, hashed, plain, quotient_remainder
from fastdlrm.model.compressed import CompressedTables, Compression
from fastdlrm.model.embedding import EmbeddingTables

KINDS = {
    "hash": lambda table, n: hashed(table, n, max(n // 3, 1), 2),
    "add": lambda table, n: quotient_remainder(table, n, 3, "add"),
    "mult": lambda table, n: quotient_remainder(table, n, 3, "mult"),
    "plain": plain,
}


def make_compressed(
    sizes: Mapping[str, int],
    features: Sequence[str],
    kinds: Mapping[str, str],
    dim: int,
    pooling: str = "sum",
) -> tuple[CompressedTables, dict[str, Composition]]:
    """Tables in this process, not drawn; how each is made."""
    made = {name: KINDS[kinds[name]](name, n) for name, n in sizes.items()}
    rows = {held: n for each in made.values() for held, n in each.num_embeddings.items()}
    parts = [part for feature in features for part in made[feature].parts]
    tables = EmbeddingTables(rows, parts, embedding_dim=dim, pooling=pooling)
    compression = Compression([made[feature] for feature in features], pooling)
    return CompressedTables(tables, compression), made


def materialised(state: Mapping[str, Tensor], made: Composition, num_ids: int) -> Tensor:
    """The whole table, a row for every id, row by row; differentiable in what lies in memory."""
    rows = []
    for row in range(num_ids):
        ids = made.ids(torch.tensor([row]))
        parts = [state[name][int(part)] for name, part in zip(made.parts, ids, strict=True)]
        stacked = torch.stack(parts)
        rows.append(stacked.prod(0) if isinstance(made.join, Product) else stacked.sum(0))
    return torch.stack(rows)
