"""Pooled lookup in rows of few bits: codes become numbers in registers, in the order of their ids.

Shapes as in `fastdlrm.kernels.quantized_lookup`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdlrm.kernels.library import implement
from fastdlrm.kernels.quantized_lookup import dim_of

TILE_NUMBERS = 1024
"""Numbers of result that a program holds: bags times columns."""
UNROLL = 4
"""Ids of a bag read at a time."""


@triton.jit
def _bf16_at(place, mask):
    """The bfloat16 number of two bytes at any address."""
    low = tl.load(place, mask=mask, other=0).to(tl.int32)
    high = tl.load(place + 1, mask=mask, other=0).to(tl.int32)
    return ((low | (high << 8)) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _numbers(
    stack, rows, weights, place, is_id, d, D: tl.constexpr, INT4: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """The row of one id of each bag, times its weight; zeros where the bag has none."""
    ROW_BYTES: tl.constexpr = D // 2 + 4 if INT4 else D + 2
    CODE_BYTES: tl.constexpr = D // 2 if INT4 else D
    row = stack + tl.load(rows + place, mask=is_id, other=0).to(tl.int64) * ROW_BYTES
    mask = is_id[:, None] & (d < D)[None, :]
    scale = _bf16_at(row + CODE_BYTES, is_id)
    if INT4:
        pairs = tl.load(row[:, None] + d[None, :] // 2, mask=mask, other=0).to(tl.int32)
        codes = (pairs >> ((d % 2) * 4)[None, :]) & 15
        offset = _bf16_at(row + CODE_BYTES + 2, is_id)
        x = codes.to(tl.float32) * scale[:, None] + offset[:, None]
    else:
        octets = tl.load(row[:, None] + d[None, :], mask=mask, other=0)
        x = octets.to(tl.int8, bitcast=True).to(tl.float32) * scale[:, None]
    if HAS_WEIGHTS:
        x *= tl.load(weights + place, mask=is_id, other=0.0).to(tl.float32)[:, None]
    return x


@triton.jit
def _quantized_lookup_kernel(
    stack, rows, offsets, weights, out, num_bags,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BAGS: tl.constexpr, UNROLL: tl.constexpr,
    INT4: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, MEAN: tl.constexpr,
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
                is_id = place < end
                total += _numbers(stack, rows, weights, place, is_id, d, D, INT4, HAS_WEIGHTS)
        if MEAN:
            total /= tl.maximum(end - start, 1).to(tl.float32)[:, None]
    else:
        total = _numbers(stack, rows, weights, bag, is_bag, d, D, INT4, HAS_WEIGHTS)
    mask = is_bag[:, None] & (d < D)[None, :]
    place_out = bag[:, None] * D + d[None, :]
    tl.store(out + place_out, total.to(out.dtype.element_ty), mask=mask)


def quantized_lookup(
    stack: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    is_mean: bool,
    dtype: torch.dtype,
    is_int4: bool,
) -> Tensor:
    """As the definition."""
    num_bags, dim = len(rows) if offsets is None else len(offsets) - 1, dim_of(stack, is_int4)
    out = torch.empty(num_bags, dim, dtype=dtype, device=rows.device)
    if num_bags:
        block_d = triton.next_power_of_2(dim)
        bags = max(1, TILE_NUMBERS // block_d)
        _quantized_lookup_kernel[(triton.cdiv(num_bags, bags),)](
            stack.contiguous(), rows, rows if offsets is None else offsets.int(),
            rows if weights is None else weights, out, num_bags, dim, block_d, bags,
            UNROLL, is_int4, offsets is not None, weights is not None,
            is_mean, num_warps=4,
        )  # fmt: skip
    return out


implement("quantized_lookup", "cuda", quantized_lookup)
