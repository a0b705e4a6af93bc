"""Read rows of a stacked embedding table and pool them into bags.

Shapes: R rows of all tables together, D embedding dim, L ids in the batch.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdlrm.kernels.library import define, has_gpu_kernels

Pooling = Literal["sum", "mean"]


def pooled_lookup(
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: Pooling = "sum",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Pool the rows of each bag; an empty bag gives zeros.

    The mean of a bag is its (weighted) sum divided by its number of ids: the weights scale the
    rows, they do not change what the sum is divided by. Differentiable in `weight` (by a dense
    gradient; the train step has a sparse one) and in `weights`.

    Args:
        weight: Rows of all tables, shape (R, D).
        rows: Row of each id, shape (L,), int32 or int64.
        offsets: Where each bag begins in `rows`, and the end, shape (num_bags + 1,), int32 or
            int64; None when every bag holds exactly one id.
        weights: One weight an id, shape (L,), of `weight`'s dtype; None for all ones.
        pooling: How the rows of a bag become one vector.
        dtype: Of the result; None: `weight`'s. Sums are taken in float32 at least.

    Returns:
        Shape (num_bags, D).
    """
    out_dtype = weight.dtype if dtype is None else dtype
    is_mean = pooling == "mean"
    return cast(Tensor, _pooled_lookup(weight, rows, offsets, weights, is_mean, out_dtype))


def bag_sizes(offsets: Tensor) -> Tensor:
    """What the mean of each bag is divided by: its ids, 1 if empty; shape (num_bags, 1)."""
    return offsets.diff().clamp(min=1).unsqueeze(1)


def segment_of(offsets: Tensor, num_positions: int) -> Tensor:
    """The segment that holds each position: the bag of each id, the feature of each id.

    Args:
        offsets: Where each segment begins, and the end, shape (num_segments + 1,), from 0 on.
        num_positions: The end.

    Returns:
        Shape (num_positions,), int32 or int64.
    """
    return cast(Tensor, _segment_of(offsets, num_positions))


def _repeated_segments(offsets: Tensor, num_positions: int) -> Tensor:
    segments = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(segments, offsets.diff(), output_size=num_positions)


def _forward(
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    is_mean: bool,
    dtype: torch.dtype,
) -> Tensor:
    if offsets is None:
        picked = weight.index_select(0, rows)
        if weights is not None:
            picked = picked * weights.unsqueeze(1)
        return picked.to(dtype)
    if rows.dtype != offsets.dtype:
        rows = rows.to(offsets.dtype)
    pooled = F.embedding_bag(
        rows, weight, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return (pooled / bag_sizes(offsets) if is_mean else pooled).to(dtype)


def _fake(
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    is_mean: bool,
    dtype: torch.dtype,
) -> Tensor:
    num_bags = rows.shape[0] if offsets is None else offsets.shape[0] - 1
    return weight.new_empty(num_bags, weight.shape[1], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, rows, offsets, weights, ctx.is_mean, _ = inputs
    ctx.save_for_backward(weight, rows, offsets, weights)


def _backward(
    ctx: Any, grad: Tensor
) -> tuple[Tensor | None, None, None, Tensor | None, None, None]:
    weight, rows, offsets, weights = ctx.saved_tensors
    grad_L = grad.to(torch.promote_types(grad.dtype, weight.dtype))
    if offsets is not None:
        if ctx.is_mean:
            grad_L = grad_L / bag_sizes(offsets)
        grad_L = grad_L.index_select(0, segment_of(offsets, len(rows)))
    grad_weight = grad_weights = None
    if ctx.needs_input_grad[0]:
        scaled = grad_L if weights is None else grad_L * weights.unsqueeze(1)
        grad_weight = torch.zeros_like(weight).index_add_(0, rows, scaled.to(weight.dtype))
    if weights is not None and ctx.needs_input_grad[3]:
        grad_weights = (grad_L * weight.index_select(0, rows)).sum(1)
    return grad_weight, None, None, grad_weights, None, None


_segment_of = define(
    "segment_of(Tensor offsets, int num_positions) -> Tensor",
    _repeated_segments,
    fake=lambda offsets, num_positions: offsets.new_empty(num_positions, dtype=torch.int64),
)
_pooled_lookup = define(
    "pooled_lookup(Tensor weight, Tensor rows, Tensor? offsets, Tensor? weights, bool is_mean,"
    " ScalarType dtype) -> Tensor",
    _forward,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)

if has_gpu_kernels():
    import fastdlrm.kernels.cuda.lookup  # noqa: F401
