"""Read rows of a stacked embedding table and pool them into bags.

Shapes: R rows of all tables together, D embedding dim, L ids in the batch.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdlrm.kernels.library import define, has_gpu_kernels, implement, on_first_call

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
        Shape (num_positions,), int32.
    """
    return cast(Tensor, _segment_of(offsets, num_positions))


def _repeated_segments(offsets: Tensor, num_positions: int) -> Tensor:
    segments = torch.arange(len(offsets) - 1, dtype=torch.int32, device=offsets.device)
    return torch.repeat_interleave(segments, offsets.diff(), output_size=num_positions)


def stack_rows(ids: Tensor, lengths: Tensor | None, starts: Tensor) -> Tensor:
    """Rows of the stack that ids of single tables stand for.

    Args:
        ids: Rows of each feature's own table, feature-major, shape (L,), int32 or int64.
        lengths: Ids in each bag, shape (F * B,); None when every bag holds exactly one id.
        starts: Row of the stack where each feature's table begins, shape (F,), int32 or int64.

    Returns:
        Shape (L,), of the type of `starts`.
    """
    return cast(Tensor, _stack_rows(ids, lengths, starts))


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
    if weights is not None:
        weights = weights.to(weight.dtype)
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
    fake=lambda offsets, num_positions: offsets.new_empty(num_positions, dtype=torch.int32),
)


def define_stack_rows(ids: Tensor, lengths: Tensor | None, starts: Tensor) -> Tensor:
    """The definition of `stack_rows`."""
    ids = ids.to(starts.dtype)
    F = len(starts)
    if lengths is None:
        return (ids.view(F, len(ids) // max(F, 1)) + starts.unsqueeze(1)).flatten()
    ids_of_feature = lengths.view(F, len(lengths) // max(F, 1)).sum(1)
    return ids + starts.repeat_interleave(ids_of_feature, output_size=len(ids))


_pooled_lookup = define(
    "pooled_lookup(Tensor weight, Tensor rows, Tensor? offsets, Tensor? weights, bool is_mean,"
    " ScalarType dtype) -> Tensor",
    _forward,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_stack_rows = define(
    "stack_rows(Tensor ids, Tensor? lengths, Tensor starts) -> Tensor",
    define_stack_rows,
    fake=lambda ids, lengths, starts: torch.empty_like(ids, dtype=starts.dtype),
)

implement("stack_rows", "cpu", on_first_call("fastdlrm.kernels.cpu.lookup", "stack_rows"))

if has_gpu_kernels():
    import fastdlrm.kernels.cuda.lookup  # noqa: F401
