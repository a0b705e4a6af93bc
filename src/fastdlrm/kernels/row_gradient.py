"""From the gradients of bags to the gradients of the rows they read.

Shapes: D embedding dim, L ids in the batch, U different rows among them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdlrm.kernels.lookup import Pooling, bag_sizes


class RowGradient(NamedTuple):
    """The gradient of a stacked table, of the rows that were read alone.

    Attributes:
        rows: Ascending, each once, shape (U,), int64.
        values: Gradient of each row, shape (U, D).
    """

    rows: Tensor
    values: Tensor


@torch.no_grad()
def row_gradient(
    grad_pooled: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: Pooling = "sum",
) -> RowGradient:
    """Sum, for each row, the gradients of the bags that read it; `pooled_lookup` transposed.

    The ids are sorted by row, and the sum over each run of equal rows is itself a pooled lookup in
    `grad_pooled`: no gradient an id is stored, and the order of summation is that of the ids, so
    the result is the same at every run, on a GPU too.

    Args:
        grad_pooled: Gradient of each bag, shape (num_bags, D).
        rows: Row of each id, shape (L,), int32 or int64; int32 sorts faster.
        offsets: As in `pooled_lookup`.
        weights: As in `pooled_lookup`.
        pooling: As in `pooled_lookup`.
    """
    keys, order = torch.sort(rows, stable=True)
    unique_rows, run_lengths = torch.unique_consecutive(keys, return_counts=True)
    bags = order
    if offsets is not None:
        bags = _bag_of_id(offsets, len(rows)).index_select(0, order)
        if pooling == "mean":
            grad_pooled = grad_pooled / bag_sizes(offsets)
    values = F.embedding_bag(
        bags,
        grad_pooled,
        F.pad(run_lengths.cumsum(0), (1, 0)),
        mode="sum",
        per_sample_weights=None if weights is None else weights.index_select(0, order),
        include_last_offset=True,
    )
    return RowGradient(unique_rows.long(), values)


def _bag_of_id(offsets: Tensor, num_ids: int) -> Tensor:
    """The bag that holds each id, shape (L,)."""
    bags = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(bags, offsets.diff(), output_size=num_ids)
