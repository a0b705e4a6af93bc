"""How the rows of a bag become one vector where tables differ in it.

A lookup pools all features by one rule. Where some tables take sums and others means, that rule is
the sum, and an id of a mean has the weight 1 / (ids of its bag).

Shapes: B batch, F sparse features, L ids in the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.lookup import segment_of
from fastdlrm.model.config import Pooling

TablePooling = Pooling | Mapping[str, Pooling]
"""Of all tables, or by table."""


def by_feature(pooling: TablePooling, feature_tables: Sequence[str]) -> list[Pooling]:
    """Each feature's pooling: that of its table.

    Args:
        pooling: Of the tables.
        feature_tables: The table of each sparse feature, in the batch's order.
    """
    if isinstance(pooling, str):
        return [pooling] * len(feature_tables)
    return [pooling[table] for table in feature_tables]


def rule_and_means(
    pooling: TablePooling, feature_tables: Sequence[str]
) -> tuple[Pooling, Tensor | None]:
    """What a lookup is asked for, and which features it takes means of by weights.

    Args:
        pooling: Of the tables.
        feature_tables: The table of each sparse feature, in the batch's order.

    Returns:
        The one rule of all features, and None; where they differ "sum", and shape (F,), bool, for
        `with_shares`.
    """
    rules = by_feature(pooling, feature_tables)
    if "mean" in rules and "sum" in rules:
        return "sum", torch.tensor([rule == "mean" for rule in rules])
    return rules[0] if rules else "sum", None


def with_shares(sparse: SparseBatch, takes_mean: Tensor | None) -> SparseBatch:
    """A batch whose weighted sums are the means of some features' bags.

    Args:
        sparse: F features.
        takes_mean: Which of them, shape (F,), bool, on the batch's device; None: none.

    Returns:
        The batch with each weight of a mean divided by its bag's number of ids; as it is where
        every bag holds one id.
    """
    if takes_mean is None or sparse.lengths is None:
        return sparse
    lengths_FB = sparse.lengths.view(sparse.num_features, sparse.num_samples)
    divisors = torch.where(takes_mean.unsqueeze(1), lengths_FB.clamp(min=1), 1).flatten()
    bags = segment_of(sparse.offsets(), len(sparse.ids))
    of_ids = divisors.index_select(0, bags).float()
    weights = 1 / of_ids if sparse.weights is None else sparse.weights / of_ids
    return replace(sparse, weights=weights)
