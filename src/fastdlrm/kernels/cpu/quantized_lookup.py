"""`quantized_lookup` on the CPU: a row's codes become numbers on their way into the bag's sum.

Invariant: one thread sums a bag, id by id, so the result depends on nothing but the bag.

Shapes: R rows, D embedding dim, L ids.
"""

from functools import lru_cache

import numpy as np
import torch
from numba import cfunc, njit, types
from torch import Tensor

from fastdlrm.kernels.cpu.native import (
    COMPILE,
    INLINE,
    block_of,
    floats,
    from_bf16,
    halves,
    ints,
    longs,
    next_piece,
    octets,
    prefetch,
    to_bf16,
)
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.quantized_lookup import define_quantized_lookup

PIECE = 64
"""Bags a thread takes at once."""

SMALL_IDS = 2**13
"""Below this many ids one thread is faster."""

AHEAD = 8
"""Ids between the one that is summed and the one whose row is asked for."""


def quantized_lookup(
    stack: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    is_mean: bool,
    dtype: torch.dtype,
    is_int4: bool,
) -> Tensor:
    """See `fastdlrm.kernels.quantized_lookup`; the kernel knows float32 and bfloat16 results."""
    if dtype not in (torch.float32, torch.bfloat16) or not stack.is_contiguous():
        return define_quantized_lookup(stack, rows, offsets, weights, is_mean, dtype, is_int4)
    row_bytes = stack.shape[1]
    dim = 2 * (row_bytes - 4) if is_int4 else row_bytes - 2
    places = rows.to(torch.int32 if len(stack) < 2**31 else torch.int64).contiguous()
    edges = None if offsets is None else offsets.to(torch.int64).contiguous()
    scales = None if weights is None else weights.float().contiguous()
    num_bags = len(places) if edges is None else len(edges) - 1
    sums = torch.empty(num_bags, dim, dtype=dtype)
    run(
        _kernel(),
        stack.data_ptr(),
        row_bytes,
        dim,
        is_int4,
        places.data_ptr(),
        places.dtype == torch.int64,
        len(places),
        0 if edges is None else edges.data_ptr(),
        num_bags,
        0 if scales is None else scales.data_ptr(),
        is_mean,
        sums.data_ptr(),
        dtype == torch.bfloat16,
        is_small=len(places) < SMALL_IDS,
    )
    return sums


@lru_cache(maxsize=1)
def _kernel() -> int:
    return cfunc(types.void(types.int64), **COMPILE)(_pool).address


@njit(**INLINE)
def _add_int8(row: int, dim: int, weight: np.float32, total: np.ndarray) -> None:
    codes, tail = octets(row, dim), octets(row + dim, 2)
    scale = from_bf16(np.uint16(tail[0]) | np.uint16(tail[1]) << np.uint16(8)) * weight
    for d in range(dim):
        total[d] += np.float32(np.int8(codes[d])) * scale


@njit(**INLINE)
def _add_int4(row: int, dim: int, weight: np.float32, total: np.ndarray) -> None:
    half = dim // 2
    codes, tail = octets(row, half), octets(row + half, 4)
    scale = from_bf16(np.uint16(tail[0]) | np.uint16(tail[1]) << np.uint16(8)) * weight
    offset = from_bf16(np.uint16(tail[2]) | np.uint16(tail[3]) << np.uint16(8)) * weight
    for d in range(half):
        total[2 * d] += offset + np.float32(codes[d] & np.uint8(15)) * scale
        total[2 * d + 1] += offset + np.float32(codes[d] >> np.uint8(4)) * scale


def _pool(address: int) -> None:
    block = block_of(address, 14)
    stack, row_bytes, dim, is_int4 = block[1], block[2], block[3], block[4]
    is_long, num_ids, num_bags = block[6], block[7], block[9]
    narrow = ints(block[5], 0 if is_long else num_ids)
    wide = longs(block[5], num_ids if is_long else 0)
    edges = longs(block[8], num_bags + 1 if block[8] else 0)
    weights = floats(block[10], num_ids if block[10] else 0)
    is_mean, sums, is_bf16 = block[11], block[12], block[13]
    scratch = np.empty(dim, np.float32)
    while True:
        start = next_piece(address) * PIECE
        if start >= num_bags:
            return
        for bag in range(start, min(start + PIECE, num_bags)):
            first, end = (edges[bag], edges[bag + 1]) if block[8] else (bag, bag + 1)
            total = scratch if is_bf16 else floats(sums + 4 * bag * dim, dim)
            for d in range(dim):
                total[d] = np.float32(0)
            for i in range(first, end):
                if i + AHEAD < num_ids:
                    ahead = wide[i + AHEAD] if is_long else np.int64(narrow[i + AHEAD])
                    prefetch(stack + ahead * row_bytes)
                row = stack + (wide[i] if is_long else np.int64(narrow[i])) * row_bytes
                weight = weights[i] if block[10] else np.float32(1)
                if is_int4:
                    _add_int4(row, dim, weight, total)
                else:
                    _add_int8(row, dim, weight, total)
            if is_mean and end > first:
                for d in range(dim):
                    total[d] /= np.float32(end - first)
            if is_bf16:
                bits = halves(sums + 2 * bag * dim, dim)
                for d in range(dim):
                    bits[d] = to_bf16(total[d])
