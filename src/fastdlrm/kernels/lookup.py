"""Read rows of a stacked embedding table and pool them into bags.

Shapes: R rows of all tables together, D embedding dim, L ids in the batch.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Pooling = Literal["sum", "mean"]


def pooled_lookup(
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: Pooling = "sum",
) -> Tensor:
    """Pool the rows of each bag; an empty bag gives zeros.

    The mean of a bag is its (weighted) sum divided by its number of ids: the weights scale the
    rows, they do not change what the sum is divided by.

    Args:
        weight: Rows of all tables, shape (R, D).
        rows: Row of each id, shape (L,), int32 or int64.
        offsets: Where each bag begins in `rows`, and the end, shape (num_bags + 1,), int32 or
            int64; None when every bag holds exactly one id.
        weights: One weight an id, shape (L,), of `weight`'s dtype; None for all ones.
        pooling: How the rows of a bag become one vector.

    Returns:
        Shape (num_bags, D).
    """
    if offsets is None:
        picked = weight.index_select(0, rows)
        return picked if weights is None else picked * weights.unsqueeze(1)
    pooled = F.embedding_bag(
        rows, weight, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return pooled / bag_sizes(offsets) if pooling == "mean" else pooled


def bag_sizes(offsets: Tensor) -> Tensor:
    """What the mean of each bag is divided by: its ids, 1 if empty; shape (num_bags, 1)."""
    return offsets.diff().clamp(min=1).unsqueeze(1)
