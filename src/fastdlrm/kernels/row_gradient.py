"""From the gradients of bags to the gradients of the rows they read.

Shapes: R rows of all tables together, D embedding dim, L ids in the batch, U different rows.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdlrm.kernels.library import define, has_gpu_kernels, implement, on_first_call
from fastdlrm.kernels.lookup import Pooling, bag_sizes, segment_of

if has_gpu_kernels():
    from fastdlrm.kernels.cuda import row_update as gpu


class RowOrder(NamedTuple):
    """The ids of a batch sorted by row: who contributes to a row's gradient, in a fixed order.

    Attributes:
        rows: Row of each id, ascending, shape (L,), int32 or int64.
        bags: Bag that read it, shape (L,), int32 or int64.
        factors: What the bag's gradient is multiplied by (the id's weight, over the bag's size for
            a mean), shape (L,), any float type; None for all ones.
        chunks: How the GPU's kernel cuts the work; None where it does not run.
    """

    rows: Tensor
    bags: Tensor
    factors: Tensor | None
    chunks: tuple[Tensor, ...] | None = None


class RowGradient(NamedTuple):
    """The gradient of a stacked table, of the rows that were read alone.

    Attributes:
        rows: Ascending, each once, shape (U,), int64.
        values: Gradient of each row, shape (U, D).
    """

    rows: Tensor
    values: Tensor


@torch.no_grad()
def row_order(
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: Pooling = "sum",
    segments: Tensor | None = None,
) -> RowOrder:
    """Sort the ids of a batch by row, stably; needs no gradient, so it can run beside the forward.

    Args:
        rows: Row of each id, shape (L,), int32 or int64; int32 sorts faster.
        offsets: As in `pooled_lookup`.
        weights: As in `pooled_lookup`.
        pooling: As in `pooled_lookup`.
        segments: As in `sort_rows`.
    """
    if offsets is not None and weights is None:
        keys, bags = sort_rows(rows, segment_of(offsets, len(rows)), segments)
        factors = None
    else:
        keys, bags = sort_rows(rows, None, segments)
        factors = None if weights is None else weights.index_select(0, bags)
        if offsets is not None:
            bags = segment_of(offsets, len(rows)).index_select(0, bags)
    chunks = gpu.row_chunks(keys) if rows.is_cuda and has_gpu_kernels() else None
    if chunks is not None:
        bags = bags.int()  # half the bytes for the kernel that reads it
    if offsets is None:
        return RowOrder(keys, bags, factors, chunks)
    if pooling == "mean":
        # float64: rounded once, to the gradient's own type.
        shares = (1 / bag_sizes(offsets).double()).squeeze(1).index_select(0, bags)
        factors = shares if factors is None else factors * shares
    return RowOrder(keys, bags, factors, chunks)


def sort_rows(
    rows: Tensor, values: Tensor | None = None, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sort rows, stably, and something of each along with them.

    Args:
        rows: None negative, shape (L,), int32 or int64.
        values: Shape (L,), int32 or int64; None: where the row stands.
        segments: Where each segment begins, and the end, shape (S + 1,), int64, on the CPU or
            `rows`' device: no row of a segment is above one of a later segment. None: unknown.

    Returns:
        The rows ascending, of `rows`' type, and their values, int32 or int64; shape (L,) both.
    """
    return cast(tuple[Tensor, Tensor], _sort_rows(rows, values, segments))


@torch.no_grad()
def row_gradient(grad_pooled: Tensor, order: RowOrder) -> RowGradient:
    """Sum, for each row, the gradients of the bags that read it; `pooled_lookup` transposed.

    The sum over each run of equal rows is itself a pooled lookup in `grad_pooled`: no gradient an
    id is stored, and the order of summation is that of the ids, so the result is the same at every
    run, on a GPU too.

    Args:
        grad_pooled: Gradient of each bag, shape (num_bags, D).
        order: The batch's ids.
    """
    unique_rows, run_lengths = torch.unique_consecutive(order.rows, return_counts=True)
    factors = order.factors
    values = F.embedding_bag(
        order.bags,
        grad_pooled,
        F.pad(run_lengths.cumsum(0), (1, 0)).to(order.bags.dtype),
        mode="sum",
        per_sample_weights=None if factors is None else factors.to(grad_pooled.dtype),
        include_last_offset=True,
    )
    return RowGradient(unique_rows.long(), values)


def define_sort_rows(
    rows: Tensor, values: Tensor | None, segments: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition of `sort_rows`; it has no use for segments."""
    keys, order = torch.sort(rows, stable=True)
    return keys, order if values is None else values.index_select(0, order)


_sort_rows = define(
    "sort_rows(Tensor rows, Tensor? values, Tensor? segments) -> (Tensor, Tensor)", define_sort_rows
)
implement("sort_rows", "cpu", on_first_call("fastdlrm.kernels.cpu.sort", "sort_rows"))
