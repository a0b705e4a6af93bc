"""`quantized_lookup` on the CPU: a row's codes become numbers on their way into the bag's sum.

Invariants: one thread sums a bag in float32, id by id, so the result depends on nothing but the
bag. A code times its row's scale is exact in float32: a bag of one id without a weight has the very
numbers of `dequantize_rows`.

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
    float32_scratch,
    floats,
    from_bf16,
    halves,
    ints,
    longs,
    next_piece,
    octets,
    prefetch_to_read,
    signed_octets,
    to_bf16,
)
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.cpu.vectors import LANES, add_int4, add_int8, fill, round_to_bf16
from fastdlrm.kernels.quantized_lookup import define_quantized_lookup, dim_of

KNOWN_DIMS = (16, 32, 64, 128)
"""Kernels are compiled for each of these; another D has one kernel for all."""

PIECE = 64
"""Bags a thread takes at once."""

SMALL_IDS = 2**13
"""Below this many ids one thread is faster."""

AHEAD = 24
"""Ids between asking for a row and using it."""

LINE_BYTES = 64

SIZE = 12
"""Numbers in a kernel's block."""


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
    dim = dim_of(stack, is_int4)
    if rows.dtype not in (torch.int32, torch.int64):
        rows = rows.long()
    rows, num_ids = rows.contiguous(), rows.shape[0]
    edges = None if offsets is None else offsets.to(torch.int64).contiguous()
    factors = None if weights is None else weights.float().contiguous()
    num_bags = num_ids if edges is None else edges.shape[0] - 1
    pooled = torch.empty(num_bags, dim, dtype=dtype)
    run(
        _kernel(dim if dim in KNOWN_DIMS else 0, is_int4, edges is not None),
        stack.data_ptr(),
        dim,
        rows.data_ptr(),
        rows.dtype == torch.int64,
        num_ids,
        0 if edges is None else edges.data_ptr(),
        num_bags,
        0 if factors is None else factors.data_ptr(),
        is_mean,
        pooled.data_ptr(),
        dtype == torch.bfloat16,
        is_small=num_ids < SMALL_IDS,
    )
    return pooled


@lru_cache(maxsize=16)
def _kernel(known_dim: int, is_int4: bool, is_jagged: bool) -> int:
    """Address of the kernel of one D, or with 0 of any."""

    def pool(address: int) -> None:
        block = block_of(address, SIZE)
        stack, dim = block[1], known_dim if known_dim else block[2]
        row_bytes = dim // 2 + 4 if is_int4 else dim + 2
        rows, is_long, num_ids = block[3], block[4], block[5]
        edges, num_bags, factors = block[6], block[7], block[8]
        is_mean, pooled, is_bf16 = block[9], block[10], block[11]
        scratch = float32_scratch(dim)
        while True:
            piece = next_piece(address) * PIECE
            if piece >= num_bags:
                return
            for bag in range(piece, min(piece + PIECE, num_bags)):
                first, end = bag, bag + 1
                if is_jagged:
                    edge = longs(edges + 8 * bag, 2)
                    first, end = edge[0], edge[1]
                sums = scratch if is_bf16 else pooled + 4 * bag * dim
                _clear(sums, dim)
                for i in range(first, end):
                    if i + AHEAD < num_ids:
                        _ask(stack + row_bytes * _row(rows, is_long, i + AHEAD), row_bytes)
                    row = stack + row_bytes * _row(rows, is_long, i)
                    factor = floats(factors + 4 * i, 1)[0] if factors else np.float32(1)
                    if is_int4:
                        _add_int4_row(row, dim, factor, sums)
                    else:
                        _add_int8_row(row, dim, factor, sums)
                if is_mean:
                    _divide(sums, dim, max(end - first, 1))
                if is_bf16:
                    _round(scratch, dim, pooled + 2 * bag * dim)

    address: int = cfunc(types.void(types.int64), **COMPILE)(pool).address
    return address


@njit(**INLINE)
def _clear(sums: int, dim: int) -> None:
    whole, total = dim // LANES * LANES, floats(sums, dim)
    for d in range(0, whole, LANES):
        fill(np.float32(0), sums + 4 * d)
    for d in range(whole, dim):
        total[d] = np.float32(0)


@njit(**INLINE)
def _divide(sums: int, dim: int, count: int) -> None:
    total = floats(sums, dim)
    for d in range(dim):
        total[d] /= np.float32(count)


@njit(**INLINE)
def _row(rows: int, is_long: int, i: int) -> np.int64:
    """The row of an id."""
    return longs(rows + 8 * i, 1)[0] if is_long else ints(rows + 4 * i, 1)[0]


@njit(**INLINE)
def _ask(row: int, row_bytes: int) -> None:
    """Ask for every line that a row lies in, in as many steps for any row: none is a surprise."""
    for place in range(0, row_bytes, LINE_BYTES):
        prefetch_to_read(row + place)
    prefetch_to_read(row + row_bytes - 1)


@njit(**INLINE)
def _bf16(address: int) -> np.float32:
    """The bfloat16 number at an address, even or odd."""
    pair = octets(address, 2)
    return from_bf16(np.uint16(pair[0]) | np.uint16(pair[1]) << np.uint16(8))


@njit(**INLINE)
def _add_int8_row(row: int, dim: int, factor: np.float32, sums: int) -> None:
    codes, scale, total = signed_octets(row, dim), _bf16(row + dim) * factor, floats(sums, dim)
    whole = dim // LANES * LANES
    for d in range(0, whole, LANES):
        add_int8(row + d, scale, sums + 4 * d)
    for d in range(whole, dim):
        total[d] += np.float32(codes[d]) * scale


@njit(**INLINE)
def _add_int4_row(row: int, dim: int, factor: np.float32, sums: int) -> None:
    half = dim // 2
    codes, total = octets(row, half), floats(sums, dim)
    scale, offset = _bf16(row + half) * factor, _bf16(row + half + 2) * factor
    whole = dim // LANES * LANES
    for d in range(0, whole, LANES):
        add_int4(row + d // 2, scale, offset, sums + 4 * d)
    for d in range(whole, dim):
        code = codes[d // 2] >> np.uint8(4) if d % 2 else codes[d // 2] & np.uint8(15)
        total[d] += np.float32(code) * scale + offset


@njit(**INLINE)
def _round(sums: int, dim: int, target: int) -> None:
    """Store float32 sums as bfloat16."""
    total, bits = floats(sums, dim), halves(target, dim)
    whole = dim // LANES * LANES
    for d in range(0, whole, LANES):
        round_to_bf16(sums + 4 * d, target + 2 * d)
    for d in range(whole, dim):
        bits[d] = to_bf16(total[d])
