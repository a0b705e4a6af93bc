"""Pooled lookup: a program reads the rows of a few bags and sums them in registers.

Shapes as in `fastdlrm.kernels.lookup`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from fastdlrm.kernels.library import implement

TILE_NUMBERS = 1024
"""Numbers of result that a program holds: bags times columns."""
UNROLL = 4
"""Ids of a bag read at a time."""


@triton.jit
def _scaled_rows(
    weight, rows, weights, place, is_id, d, D: tl.constexpr, HAS_WEIGHTS: tl.constexpr
):  # fmt: skip
    """The row of one id of each bag, times its weight; zeros where the bag has none."""
    row = tl.load(rows + place, mask=is_id, other=0).to(tl.int64)
    mask = is_id[:, None] & (d < D)[None, :]
    x = tl.load(weight + row[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_WEIGHTS:
        x *= tl.load(weights + place, mask=is_id, other=0.0).to(tl.float32)[:, None]
    return x


@triton.jit
def _lookup_kernel(
    weight, rows, offsets, weights, out, num_bags,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BAGS: tl.constexpr, UNROLL: tl.constexpr,
    HAS_OFFSETS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    bag, d = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS), tl.arange(0, BLOCK_D)
    is_bag = bag < num_bags
    if HAS_OFFSETS:
        start = tl.load(offsets + bag, mask=is_bag, other=0)
        end = tl.load(offsets + bag + 1, mask=is_bag, other=0)
        total = tl.zeros((BAGS, BLOCK_D), tl.float32)
        for j in range(0, tl.max(end - start, 0), UNROLL):
            for u in tl.static_range(UNROLL):
                place = start + j + u
                total += _scaled_rows(weight, rows, weights, place, place < end, d, D, HAS_WEIGHTS)
        if MEAN:
            total /= tl.maximum(end - start, 1).to(tl.float32)[:, None]
    else:
        total = _scaled_rows(weight, rows, weights, bag, is_bag, d, D, HAS_WEIGHTS)
    place_out = bag[:, None] * D + d[None, :]
    mask = is_bag[:, None] & (d < D)[None, :]
    tl.store(out + place_out, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _segment_kernel(
    offsets, out, num_segments, num_positions, STEPS: tl.constexpr, BLOCK: tl.constexpr
):
    """The first segment whose end is beyond the position, by halves."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low, high = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32) + num_segments
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        is_open = low < high
        is_beyond = tl.load(offsets + middle + 1, mask=is_open, other=0) > i
        low = tl.where(is_open & ~is_beyond, middle + 1, low)
        high = tl.where(is_open & is_beyond, middle, high)
    tl.store(out + i, low, mask=i < num_positions)


def segment_of(offsets: Tensor, num_positions: int) -> Tensor:
    """As the definition."""
    out = torch.empty(num_positions, dtype=torch.int32, device=offsets.device)
    num_segments = len(offsets) - 1
    if num_positions:
        _segment_kernel[(triton.cdiv(num_positions, 1024),)](
            offsets, out, num_segments, num_positions, num_segments.bit_length(), 1024
        )
    return out


def stack_rows(ids: Tensor, lengths: Tensor | None, starts: Tensor) -> Tensor:
    """As the definition."""
    F, own = len(starts), ids.to(starts.dtype)
    if not F:
        return own
    if lengths is None:
        return (own.view(F, -1) + starts.unsqueeze(1)).flatten()
    offsets = pad(lengths.view(F, -1).sum(1).cumsum(0), (1, 0))
    return own + starts.index_select(0, segment_of(offsets, len(ids)))


def pooled_lookup(
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    is_mean: bool,
    dtype: torch.dtype,
) -> Tensor:
    """As the definition."""
    num_bags = len(rows) if offsets is None else len(offsets) - 1
    dim = weight.shape[1]
    out = torch.empty(num_bags, dim, dtype=dtype, device=rows.device)
    if num_bags:
        block_d = triton.next_power_of_2(dim)
        bags = max(1, TILE_NUMBERS // block_d)
        _lookup_kernel[(triton.cdiv(num_bags, bags),)](
            weight, rows, rows if offsets is None else offsets.int(),
            weight if weights is None else weights, out, num_bags, dim, block_d, bags,
            UNROLL, offsets is not None, weights is not None,
            is_mean, num_warps=4,
        )  # fmt: skip
    return out


implement("pooled_lookup", "cuda", pooled_lookup)
implement("segment_of", "cuda", segment_of)
implement("stack_rows", "cuda", stack_rows)
