"""`update_rows_` on the CPU: sum the gradient of each row and apply the rule, in one pass.

Invariants: the ids of a row are summed in their order and by one thread, so results do not depend
on the number of threads; each row and its state are read once and written once.

Shapes: R rows of all tables together, D embedding dim, L ids in the batch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numba import cfunc, njit, types
from torch import Tensor

from fastdlrm.kernels.cpu.native import (
    COMPILE,
    INLINE,
    block_of,
    doubles,
    float32_bits,
    float32_scratch,
    floats,
    from_bf16,
    halves,
    ints,
    next_piece,
    prefetch,
)
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.row_update import RuleName, define_update_rows_

RULES: tuple[RuleName, ...] = ("sgd", "adagrad", "rowwise_adagrad", "adam")
SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM = range(4)

PIECE = 256
"""Ids a thread takes at once."""

LINE_BYTES = 64

AHEAD = 12
"""Ids between asking for a row and using it: some of them are the same row."""

SMALL_NUMBERS = 2**13
"""Below this many numbers of gradient one thread is faster."""


def update_rows_(
    tables: Sequence[Tensor],
    grad_pooled: Tensor,
    rows: Tensor,
    bags: Tensor,
    factors: Tensor | None,
    rule: RuleName,
    constants: Tensor,
    scalars: Tensor,
) -> None:
    """See `fastdlrm.kernels.row_update.update_rows_`.

    Args:
        tables: The weight, shape (R, D), then the rule's state in its order; the kernel knows
            weights of float32 and bfloat16.
        grad_pooled: Shape (num_bags, D); the kernel knows float32 and bfloat16.
        rows: Ascending, shape (L,), int32 or int64.
        bags: Shape (L,), int32 or int64.
        factors: Shape (L,), or None.
        rule: Of RULES.
        constants: eps, l2, b1, b2: float64.
        scalars: `StepScalars.tensor`, float64.
    """
    if not _has_kernel(tables, grad_pooled, rows):
        define_update_rows_(tables, grad_pooled, rows, bags, factors, rule, constants, scalars)
        return
    weight, *state = tables
    num_ids, dim = len(rows), weight.shape[1]
    gradient, places = grad_pooled.contiguous(), bags.to(torch.int32)
    shares = None if factors is None else factors.to(torch.float32)
    moments = [tensor.data_ptr() for tensor in state] + [0, 0]
    run(
        _kernel(),
        num_ids,
        dim,
        RULES.index(rule),
        weight.data_ptr(),
        weight.dtype == torch.bfloat16,
        moments[0],
        moments[1],
        gradient.data_ptr(),
        gradient.dtype == torch.bfloat16,
        rows.data_ptr(),
        places.data_ptr(),
        0 if shares is None else shares.data_ptr(),
        constants.data_ptr(),
        scalars.data_ptr(),
        is_small=num_ids * dim < SMALL_NUMBERS,
    )


def _has_kernel(tables: Sequence[Tensor], grad_pooled: Tensor, rows: Tensor) -> bool:
    """Whether the kernel knows these types; the definition knows all."""
    known = (torch.float32, torch.bfloat16)
    return (
        rows.dtype == torch.int32
        and tables[0].dtype in known
        and grad_pooled.dtype in known
        and all(tensor.is_contiguous() for tensor in tables)
    )


@lru_cache(maxsize=1)
def _kernel() -> int:
    """Address of the compiled kernel."""
    return cfunc(types.void(types.int64), **COMPILE)(_update).address


class _Ids(NamedTuple):
    """The batch's ids, sorted."""

    rows: np.ndarray
    bags: np.ndarray
    factors: np.ndarray
    has_factors: bool


class _Row(NamedTuple):
    """A row that is being updated: D numbers, and those of its state.

    Attributes:
        numbers: The row, as float32.
        first: The rule's first tensor of state; one number for rowwise_adagrad.
        second: The second.
    """

    numbers: np.ndarray
    first: np.ndarray
    second: np.ndarray


def _update(address: int) -> None:
    """The kernel; its block holds what `update_rows_` passes to `run`, in that order."""
    block = block_of(address, 15)
    num_ids, dim, rule, weight, is_bf16 = block[1], block[2], block[3], block[4], block[5]
    ids = _Ids(
        ints(block[10], num_ids),
        ints(block[11], num_ids),
        floats(block[12], num_ids),
        block[12] != 0,
    )
    constants = doubles(block[13], 4)
    scalars = doubles(block[14], 5)
    state_dim = 1 if rule == ROWWISE_ADAGRAD else dim
    total = floats(float32_scratch(dim), dim)
    widened = floats(float32_scratch(dim), dim)
    while True:
        i = next_piece(address) * PIECE
        if i >= num_ids:
            return
        stop = min(i + PIECE, num_ids)
        if i > 0:  # a run that began before belongs to the piece it began in
            before = ids.rows[i - 1]
            while i < stop and ids.rows[i] == before:
                i += 1
        while i < stop:
            index = int(ids.rows[i])
            i = _sum_run(total, ids, i, block)
            first = floats(block[6] + 4 * index * state_dim, state_dim)
            second = floats(block[7] + 4 * index * state_dim, state_dim)
            if is_bf16:
                bits = halves(weight + 2 * index * dim, dim)
                for d in range(dim):
                    widened[d] = from_bf16(bits[d])
                row = _Row(widened, first, second)
                _prepare(total, row.numbers, constants, scalars)
                _move(rule, row, total, constants, scalars)
                _round(bits, index * dim, widened, scalars)
            else:
                numbers = floats(weight + 4 * index * dim, dim)
                row = _Row(numbers, first, second)
                _prepare(total, row.numbers, constants, scalars)
                _move(rule, row, total, constants, scalars)


@njit(**INLINE)
def _sum_run(total: np.ndarray, ids: _Ids, i: int, block: np.ndarray) -> int:
    """Sum the gradients of the run of equal rows that begins at i; gives where the next begins."""
    num_ids, dim, row = block[1], block[2], ids.rows[i]
    gradients, is_bf16 = block[8], block[9]
    for d in range(dim):
        total[d] = np.float32(0)
    while i < num_ids and ids.rows[i] == row:
        if i + AHEAD < num_ids:
            _ask_for(np.int64(ids.rows[i + AHEAD]), np.int64(ids.bags[i + AHEAD]), block)
        start = np.int64(ids.bags[i]) * dim
        factor = ids.factors[i] if ids.has_factors else np.float32(1)
        if is_bf16:
            bits = halves(gradients + 2 * start, dim)
            for d in range(dim):
                total[d] += factor * from_bf16(bits[d])
        else:
            numbers = floats(gradients + 4 * start, dim)
            for d in range(dim):
                total[d] += factor * numbers[d]
        i += 1
    return i


@njit(**INLINE)
def _ask_for(row: int, bag: int, block: np.ndarray) -> None:
    """Prefetch a row, its state and its bag's gradient."""
    dim, rule = block[2], block[3]
    row_bytes, bag_bytes = dim * (2 if block[5] else 4), dim * (2 if block[9] else 4)
    for byte in range(0, row_bytes, LINE_BYTES):
        prefetch(block[4] + row * row_bytes + byte)
    for byte in range(0, bag_bytes, LINE_BYTES):
        prefetch(block[8] + bag * bag_bytes + byte)
    if rule == ROWWISE_ADAGRAD:
        prefetch(block[6] + row * 4)
    elif rule != SGD:
        for byte in range(0, dim * 4, LINE_BYTES):
            prefetch(block[6] + row * dim * 4 + byte)


@njit(**INLINE)
def _prepare(
    total: np.ndarray, numbers: np.ndarray, constants: np.ndarray, scalars: np.ndarray
) -> None:
    """Scale the gradient, then add l2 times the row."""
    scale, l2 = np.float32(scalars[3]), np.float32(constants[1])
    if scale != np.float32(1):
        for d in range(len(total)):
            total[d] *= scale
    if l2 != np.float32(0):
        for d in range(len(total)):
            total[d] += l2 * numbers[d]


@njit(**INLINE)
def _move(
    rule: int, row: _Row, gradient: np.ndarray, constants: np.ndarray, scalars: np.ndarray
) -> None:
    """Apply the rule to a row."""
    rate, eps = np.float32(scalars[0]), np.float32(constants[0])
    if rule == SGD:
        for d in range(len(gradient)):
            row.numbers[d] -= rate * gradient[d]
    elif rule == ADAGRAD:
        for d in range(len(gradient)):
            square_sum = row.first[d] + gradient[d] * gradient[d]
            row.first[d] = square_sum
            row.numbers[d] -= rate * gradient[d] / (np.sqrt(square_sum) + eps)
    elif rule == ROWWISE_ADAGRAD:
        squares = np.float32(0)
        for d in range(len(gradient)):
            squares += gradient[d] * gradient[d]
        square_sum = row.first[0] + squares / np.float32(len(gradient))
        row.first[0] = square_sum
        step = rate / (np.sqrt(square_sum) + eps)
        for d in range(len(gradient)):
            row.numbers[d] -= step * gradient[d]
    else:
        _adam(row, gradient, constants, scalars)


@njit(**INLINE)
def _adam(row: _Row, gradient: np.ndarray, constants: np.ndarray, scalars: np.ndarray) -> None:
    eps, b2 = np.float32(constants[0]), np.float32(constants[3])
    new_first, new_second = np.float32(1 - constants[2]), np.float32(1 - constants[3])
    step = np.float32(scalars[0] / scalars[1])
    root = np.float32(np.sqrt(scalars[2]))
    for d in range(len(gradient)):
        first = row.first[d] + new_first * (gradient[d] - row.first[d])
        second = b2 * row.second[d] + new_second * gradient[d] * gradient[d]
        row.first[d], row.second[d] = first, second
        row.numbers[d] -= step * first / (np.sqrt(second) / root + eps)


@njit(**INLINE)
def _round(bits: np.ndarray, start: int, numbers: np.ndarray, scalars: np.ndarray) -> None:
    """Write a row to bfloat16, rounded stochastically as in `write_rows_`, bit for bit."""
    seed = np.uint32(np.int64(scalars[4]) & 0xFFFFFFFF)
    for d in range(len(numbers)):
        place = np.uint32((start + d) & 0xFFFFFFFF)
        noise = _hash32(np.uint32(_hash32(place) ^ seed)) & np.uint32(0xFFFF)
        bits[d] = np.uint16((float32_bits(numbers[d]) + noise) >> np.uint32(16))


@njit(**INLINE)
def _hash32(x: np.uint32) -> np.uint32:
    """As `fastdlrm.kernels.row_update.hash32`."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))
