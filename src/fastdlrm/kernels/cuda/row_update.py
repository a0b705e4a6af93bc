"""The tables' optimizer in two kernels: sum the gradient of each row, apply the rule in place.

The sorted ids are cut into chunks: a run of equal rows is one chunk, a long run several. Each chunk
is summed in its own order; a whole run's sum goes straight into the rule. The sums of a long run's
chunks are stored and added in order by a second kernel. No atomics: the same bits at every run.

Shapes as in `fastdlrm.kernels.row_update`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 64
"""Most ids of a chunk."""
TILE_NUMBERS = 512
"""Numbers of gradient that a program holds: rows times columns."""
UNROLL = 2
"""Ids of a chunk read at a time."""
WARPS = 2
PARTS = 64
"""Chunks of a long run added at a time."""


@triton.jit
def _chunk_flag_kernel(starts, flags, num_ids, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """1 where a chunk begins: at a multiple of CHUNK from its run's start."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(starts + i, mask=i < num_ids, other=0)
    tl.store(flags + i, ((i - start) % CHUNK == 0).to(tl.int32), mask=i < num_ids)


@triton.jit
def _chunk_list_kernel(starts, ranks, chunks, num_ids, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """chunks[k] = where chunk k begins, then one past the last id, then nothing."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(starts + i, mask=i < num_ids, other=1)
    rank = tl.load(ranks + i, mask=i < num_ids, other=0)
    tl.store(chunks + rank - 1, i, mask=(i < num_ids) & ((i - start) % CHUNK == 0))
    tl.store(chunks + rank, i + 1, mask=i == num_ids - 1)


@triton.jit
def _hash32(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _apply(
    weight, first, second, scalars, row, d, g, mask, eps, l2, beta1, beta2,
    RULE: tl.constexpr, D: tl.constexpr, HAS_L2: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Apply the rule to a tile of rows, whose summed gradients are g."""
    rate = tl.load(scalars)
    place = row.to(tl.int64)[:, None] * D + d[None, :]
    mask = mask[:, None] & (d < D)[None, :]
    w = tl.load(weight + place, mask=mask, other=0.0).to(tl.float32)
    g = g * tl.load(scalars + 3)
    if HAS_L2:
        g += l2 * w
        g = tl.where(mask, g, 0.0)
    if RULE == "sgd":
        w -= rate * g
    elif RULE == "rowwise_adagrad":
        row_mask = tl.max(mask.to(tl.int32), 1) > 0
        s = tl.load(first + row, mask=row_mask, other=1.0) + tl.sum(g * g, 1) / D
        tl.store(first + row, s, mask=row_mask)
        w -= g * (rate / (tl.sqrt_rn(s) + eps))[:, None]
    elif RULE == "adagrad":
        s = tl.load(first + place, mask=mask, other=1.0) + g * g
        tl.store(first + place, s, mask=mask)
        w -= rate * g / (tl.sqrt_rn(s) + eps)
    else:
        m = tl.load(first + place, mask=mask, other=0.0)
        m += (1 - beta1) * (g - m)
        v = tl.load(second + place, mask=mask, other=1.0)
        v = v * beta2 + (1 - beta2) * g * g
        tl.store(first + place, m, mask=mask)
        tl.store(second + place, v, mask=mask)
        denominator = tl.sqrt_rn(v) / tl.sqrt_rn(tl.load(scalars + 2)) + eps
        w -= rate / tl.load(scalars + 1) * m / denominator
    if STOCHASTIC:
        seed = tl.load(scalars + 4).to(tl.uint32)
        noise = _hash32(_hash32(place.to(tl.uint32)) ^ seed) & 0xFFFF
        bits = (w.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000
        w = bits.to(tl.float32, bitcast=True)
    tl.store(weight + place, w.to(weight.dtype.element_ty), mask=mask)


@triton.jit
def _row_update_kernel(
    weight, first, second, grad, rows, bags, factors, chunks, num_chunks, parts, tags, scalars,
    num_ids, eps, l2, beta1, beta2,
    RULE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    CHUNK: tl.constexpr, UNROLL: tl.constexpr, HAS_FACTORS: tl.constexpr, HAS_L2: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Program p: chunks p ROWS .. p ROWS + ROWS - 1."""
    count = tl.load(num_chunks)
    if tl.program_id(0) * ROWS >= count:
        return
    k, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    is_chunk = k < count
    start = tl.load(chunks + k, mask=is_chunk, other=0)
    end = tl.load(chunks + k + 1, mask=is_chunk, other=0)
    row = tl.load(rows + start, mask=is_chunk, other=0)
    goes_on = is_chunk & (end < num_ids)
    goes_on = goes_on & (tl.load(rows + end, mask=goes_on, other=0) == row)
    is_later = is_chunk & (start > 0)
    is_later = is_later & (tl.load(rows + start - 1, mask=is_later, other=0) == row)
    total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    longest = tl.max(end - start, 0)
    for j in range(0, longest, UNROLL):
        for u in tl.static_range(UNROLL):
            place = start + j + u
            is_id = place < end
            bag = tl.load(bags + place, mask=is_id, other=0).to(tl.int64)
            mask = is_id[:, None] & (d < D)[None, :]
            g = tl.load(grad + bag[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            if HAS_FACTORS:
                g *= tl.load(factors + place, mask=is_id, other=0.0).to(tl.float32)[:, None]
            total += g
    is_part = goes_on | is_later
    slot = 2 * (start // CHUNK) + (1 - is_later.to(tl.int32))
    place = slot.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(parts + place, total, mask=is_part[:, None] & (d < D)[None, :])
    tl.store(tags + slot, row, mask=is_part)
    _apply(weight, first, second, scalars, row, d, total, is_chunk & ~is_part, eps, l2, beta1,
           beta2, RULE, D, HAS_L2, STOCHASTIC)  # fmt: skip


@triton.jit
def _long_run_kernel(
    weight, first, second, parts, tags, scalars, num_slots, eps, l2, beta1, beta2,
    RULE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr,
    HAS_L2: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Program p: the long run whose first chunk begins in window p, if there is one.

    Chunk c of it has slot 2 (p + c), the first 2 p + 1: a chunk that begins a run and one that goes
    on with another run can begin in the same window of CHUNK ids.
    """
    window = tl.program_id(0)
    row = tl.load(tags + 2 * window + 1)
    if row < 0:
        return
    d = tl.arange(0, BLOCK_D)
    total = tl.zeros((1, BLOCK_D), tl.float32)
    c = tl.arange(0, PARTS)
    num_found = PARTS
    while num_found == PARTS:
        slot = 2 * (window + c) + (c == 0).to(tl.int32)
        is_own = tl.load(tags + slot, mask=slot < num_slots, other=-1) == row
        place = slot.to(tl.int64)[:, None] * D + d[None, :]
        part = tl.load(parts + place, mask=is_own[:, None] & (d < D)[None, :], other=0.0)
        total += tl.sum(part, 0)[None, :]
        num_found = tl.sum(is_own.to(tl.int32), 0)
        c += PARTS
    one = tl.zeros((1,), tl.int32)
    _apply(weight, first, second, scalars, row + one, d, total, one == 0, eps, l2, beta1, beta2,
           RULE, D, HAS_L2, STOCHASTIC)  # fmt: skip


def row_chunks(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut sorted ids into chunks.

    Args:
        rows: Ascending, shape (L,).

    Returns:
        Where each chunk begins, then L, shape (L + 1,), int32, the rest undefined; their number in
        the last element of a tensor of shape (L,); room for the rows of partial sums, all -1.
    """
    num_ids = len(rows)
    starts = torch.searchsorted(rows, rows, out_int32=True)
    flags = torch.empty_like(starts)
    grid = (triton.cdiv(num_ids, 1024),)
    _chunk_flag_kernel[grid](starts, flags, num_ids, CHUNK, 1024)
    ranks = torch.cumsum(flags, 0, dtype=torch.int32)
    chunks = torch.empty(num_ids + 1, dtype=torch.int32, device=rows.device)
    _chunk_list_kernel[grid](starts, ranks, chunks, num_ids, CHUNK, 1024)
    tags = torch.full((_num_slots(num_ids),), -1, dtype=rows.dtype, device=rows.device)
    return chunks, ranks, tags


def update_rows_(
    weight: Tensor,
    state: list[Tensor],
    grad_pooled: Tensor,
    rows: Tensor,
    bags: Tensor,
    factors: Tensor | None,
    chunks: tuple[Tensor, ...],
    scalars: Tensor,
    *,
    name: str,
    eps: float,
    l2: float,
    betas: tuple[float, float],
) -> None:
    """As `fastdlrm.kernels.row_update.update_rows_`.

    Args:
        weight: Shape (R, D).
        state: The rule's tensors, in its order.
        grad_pooled: Shape (num_bags, D).
        rows: Ascending, shape (L,).
        bags: Shape (L,).
        factors: Shape (L,), or None.
        chunks: As `row_chunks` returned them; used up.
        scalars: Of this step, on the device.
        name: Of the rule.
        eps: Of the rule.
        l2: Of the rule.
        betas: Of the rule.
    """
    num_ids, dim = len(rows), weight.shape[1]
    if not num_ids:
        return
    begins, ranks, tags = chunks
    block_d = triton.next_power_of_2(dim)
    tile_rows = max(1, TILE_NUMBERS // block_d)
    parts = torch.empty(len(tags), dim, dtype=torch.float32, device=rows.device)
    grad_pooled = grad_pooled.contiguous()
    first, second = [*state, weight, weight][:2]
    common = (eps, l2, *betas, name, dim, block_d)
    is_stochastic = weight.dtype == torch.bfloat16
    _row_update_kernel[(triton.cdiv(num_ids, tile_rows),)](
        weight, first, second, grad_pooled, rows, bags, bags if factors is None else factors,
        begins, ranks[-1:], parts, tags, scalars, num_ids, *common, tile_rows, CHUNK, UNROLL,
        factors is not None, l2 != 0, is_stochastic, num_warps=WARPS,
    )  # fmt: skip
    _long_run_kernel[(len(tags) // 2,)](
        weight, first, second, parts, tags, scalars, len(tags), *common, PARTS, l2 != 0,
        is_stochastic, num_warps=4,
    )  # fmt: skip


def _num_slots(num_ids: int) -> int:
    return 2 * (num_ids // CHUNK + 1)
