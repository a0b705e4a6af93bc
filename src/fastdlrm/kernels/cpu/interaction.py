"""`dot_interaction` and its backward pass on the CPU: sample by sample, in the first-level cache.

Invariants: products are summed in float32 whatever the type; one thread computes a sample, so
results do not depend on the number of threads.

Shapes: B batch, F sparse features, V vectors a sample (F, and one more with a dense vector),
D embedding dim, P pairs.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import cfunc, njit, types
from torch import Tensor

from fastdlrm.kernels.cpu.native import (
    COMPILE,
    INLINE,
    LANES,
    block_of,
    float32_scratch,
    floats,
    from_bf16,
    halves,
    next_piece,
    times_columns,
    to_bf16,
)
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.interaction import (
    define_dot_interaction,
    define_dot_interaction_backward,
    dot_interaction_width,
)

KNOWN_DIMS = (16, 32, 64, 128, 256)
"""Kernels are compiled for each of these; another D has one kernel for all."""

PIECE = 8
"""Samples a thread takes at once."""

SMALL_NUMBERS = 2**14
"""Below this many numbers of input one thread is faster."""

MAX_SCRATCH_NUMBERS = 2**17
"""Numbers of one sample that a thread's stack holds with ease."""

SHORT_DIM = 32
"""Up to this D a sample's vectors are laid side by side, and one is multiplied by many at once."""

SIZE = 15
"""Numbers in a kernel's block."""


def dot_interaction(
    dense: Tensor | None, pooled: Tensor, include_diagonal: bool, width: int
) -> Tensor:
    """See `fastdlrm.kernels.interaction.dot_interaction`."""
    if not _has_kernel(dense, pooled):
        return define_dot_interaction(dense, pooled, include_diagonal, width)
    B, num_features, dim = pooled.shape
    natural = dot_interaction_width(num_features, dim, dense is not None, include_diagonal)
    joined = pooled.new_empty(B, max(natural, width))
    _run(_forward_kernel, dense, pooled, include_diagonal, joined, 0, 0)
    return joined


def dot_interaction_backward(
    grad: Tensor, dense: Tensor | None, pooled: Tensor, include_diagonal: bool, relu: bool
) -> tuple[Tensor, Tensor]:
    """See `fastdlrm.kernels.interaction.dot_interaction_backward`."""
    if not _has_kernel(dense, pooled) or grad.dtype != pooled.dtype:
        return define_dot_interaction_backward(grad, dense, pooled, include_diagonal, relu)
    B, num_features, dim = pooled.shape
    grad_pooled = pooled.new_empty(num_features, B, dim)
    grad_dense = grad.new_empty(0) if dense is None else grad.new_empty(B, dim)
    places = grad_dense.data_ptr(), grad_pooled.data_ptr()
    _run(_backward_kernel, dense, pooled, include_diagonal, grad.contiguous(), *places)
    if relu and dense is not None:
        grad_dense = torch.ops.aten.threshold_backward(grad_dense, dense, 0)
    return grad_dense, grad_pooled.transpose(0, 1)


def _has_kernel(dense: Tensor | None, pooled: Tensor) -> bool:
    """Whether the kernels know these tensors; the definition knows all."""
    _, num_features, dim = pooled.shape
    num_vectors = num_features + (dense is not None)
    return (
        pooled.dtype in (torch.float32, torch.bfloat16)
        and (dense is None or dense.dtype == pooled.dtype)
        and pooled.stride(2) == 1
        and num_vectors * (2 * dim + 2 * num_vectors) <= MAX_SCRATCH_NUMBERS
    )


def _run(
    kernel: Callable[[int], int],
    dense: Tensor | None,
    pooled: Tensor,
    include_diagonal: bool,
    joined: Tensor,
    grad_dense: int,
    grad_pooled: int,
) -> None:
    B, num_features, dim = pooled.shape
    vectors = None if dense is None else dense.contiguous()
    run(
        kernel(dim if dim in KNOWN_DIMS else 0),
        B,
        num_features,
        dim,
        include_diagonal,
        pooled.dtype == torch.bfloat16,
        0 if vectors is None else vectors.data_ptr(),
        pooled.data_ptr(),
        pooled.stride(0),
        pooled.stride(1),
        joined.data_ptr(),
        joined.shape[1],
        dense is not None,
        grad_dense,
        grad_pooled,
        is_small=pooled.numel() < SMALL_NUMBERS,
    )


@lru_cache(maxsize=16)
def _forward_kernel(known_dim: int) -> int:
    """Address of the kernel for one D, or with 0 for any."""

    def forward(address: int) -> None:
        block = block_of(address, SIZE)
        B, dim = block[1], known_dim if known_dim else block[3]
        has_dense, num_vectors, skipped = block[12], block[2] + block[12], 1 - block[4]
        joined, width = block[10], block[11]
        vectors, row = float32_scratch(num_vectors * dim), float32_scratch(width + LANES)
        out = floats(row, width)
        is_short, stride = dim <= SHORT_DIM, (num_vectors + LANES - 1) // LANES * LANES
        size = stride * dim if is_short else 0
        columns = float32_scratch(size)
        _zero(columns, size)  # of numbers that are left over, some would be multiplied slowly
        while True:
            piece = next_piece(address) * PIECE
            if piece >= B:
                return
            for b in range(piece, min(piece + PIECE, B)):
                _read_vectors(vectors, b, dim, block)
                at = 0
                if has_dense:
                    dense = floats(vectors, dim)
                    for d in range(dim):
                        out[d] = dense[d]
                    at = dim
                if is_short:
                    _transpose(columns, vectors, num_vectors, dim, stride)
                    _short_pairs(row + 4 * at, vectors, columns, skipped, num_vectors, dim)
                else:
                    _pairs(row + 4 * at, vectors, skipped, num_vectors, dim)
                at += num_vectors * (num_vectors + 1) // 2 - skipped * num_vectors
                for k in range(at, width):
                    out[k] = np.float32(0)
                _write(joined, b * width, out, block[5])

    return _compiled(forward)


@lru_cache(maxsize=16)
def _backward_kernel(known_dim: int) -> int:
    """Address of the kernel for one D, or with 0 for any."""

    def backward(address: int) -> None:
        block = block_of(address, SIZE)
        B, dim = block[1], known_dim if known_dim else block[3]
        has_dense, num_vectors, is_bf16 = block[12], block[2] + block[12], block[5]
        joined, width, grad_dense, grad_pooled = block[10], block[11], block[13], block[14]
        vectors, moved = float32_scratch(num_vectors * dim), float32_scratch(dim)
        row, square = float32_scratch(width), float32_scratch(num_vectors * num_vectors)
        total, grads = floats(moved, dim), floats(row, width)
        while True:
            piece = next_piece(address) * PIECE
            if piece >= B:
                return
            for b in range(piece, min(piece + PIECE, B)):
                _read_vectors(vectors, b, dim, block)
                _read(grads, joined, b * width, is_bf16)
                _unfold(square, grads, dim if has_dense else 0, num_vectors, block[4])
                for i in range(num_vectors):
                    _weighted_sum(total, vectors, square + 4 * i * num_vectors, num_vectors)
                    if has_dense and i == 0:
                        for d in range(dim):
                            total[d] += grads[d]
                        _write(grad_dense, b * dim, total, is_bf16)
                    else:
                        _write(grad_pooled, ((i - has_dense) * B + b) * dim, total, is_bf16)

    return _compiled(backward)


def _compiled(function: Any) -> int:
    return cfunc(types.void(types.int64), **COMPILE)(function).address


@njit(**INLINE)
def _read_vectors(vectors: int, b: int, dim: int, block: np.ndarray) -> None:
    """Copy a sample's vectors, as float32, one behind the other."""
    if block[12]:
        _read(floats(vectors, dim), block[6], b * dim, block[5])
    for f in range(block[2]):
        place = floats(vectors + 4 * (f + block[12]) * dim, dim)
        _read(place, block[7], b * block[8] + f * block[9], block[5])


@njit(**INLINE)
def _read(numbers: np.ndarray, source: int, start: int, is_bf16: int) -> None:
    """Read float32 or bfloat16 numbers from a place in a tensor."""
    if is_bf16:
        bits = halves(source + 2 * start, len(numbers))
        for d in range(len(numbers)):
            numbers[d] = from_bf16(bits[d])
    else:
        plain = floats(source + 4 * start, len(numbers))
        for d in range(len(numbers)):
            numbers[d] = plain[d]


@njit(**INLINE)
def _write(target: int, start: int, numbers: np.ndarray, is_bf16: int) -> None:
    """Write numbers to a place in a tensor of float32 or bfloat16."""
    if is_bf16:
        bits = halves(target + 2 * start, len(numbers))
        for d in range(len(numbers)):
            bits[d] = to_bf16(numbers[d])
    else:
        plain = floats(target + 4 * start, len(numbers))
        for d in range(len(numbers)):
            plain[d] = numbers[d]


@njit(**INLINE)
def _zero(target: int, count: int) -> None:
    numbers = floats(target, count)
    for k in range(count):
        numbers[k] = np.float32(0)


@njit(**INLINE)
def _transpose(columns: int, vectors: int, num_vectors: int, dim: int, stride: int) -> None:
    """Lay vectors side by side: number d of vector i at d * stride + i."""
    for d in range(dim):
        row, source = floats(columns + 4 * d * stride, stride), vectors + 4 * d
        for i in range(num_vectors):
            row[i] = floats(source + 4 * i * dim, 1)[0]


@njit(**INLINE)
def _short_pairs(
    target: int, vectors: int, columns: int, skipped: int, num_vectors: int, dim: int
) -> None:
    """All pairs' products, from vectors that lie side by side too; up to LANES numbers behind them.

    What a row has too much falls to the next row's place, before that is written.
    """
    stride = (num_vectors + LANES - 1) // LANES * LANES
    for i in range(skipped, num_vectors):
        count = i + 1 - skipped
        for j in range(0, count, LANES):
            one, place = vectors + 4 * i * dim, target + 4 * j
            times_columns(one, columns + 4 * j, stride, dim, place)
        target += 4 * count


@njit(**INLINE)
def _pairs(target: int, vectors: int, skipped: int, num_vectors: int, dim: int) -> None:
    """All pairs' products."""
    for i in range(skipped, num_vectors):
        count = i + 1 - skipped
        _products(target, vectors, i, count, dim)
        target += 4 * count


@njit(**INLINE)
def _products(target: int, vectors: int, i: int, count: int, dim: int) -> None:
    """Products of vector i with the first `count` ones, four at a time."""
    out, one = floats(target, count), floats(vectors + 4 * i * dim, dim)
    for j in range(0, count - 3, 4):
        first = vectors + 4 * j * dim
        a, b = floats(first, dim), floats(first + 4 * dim, dim)
        c, e = floats(first + 8 * dim, dim), floats(first + 12 * dim, dim)
        sum_a = sum_b = sum_c = sum_e = np.float32(0)
        for d in range(dim):
            sum_a += one[d] * a[d]
            sum_b += one[d] * b[d]
            sum_c += one[d] * c[d]
            sum_e += one[d] * e[d]
        out[j], out[j + 1], out[j + 2], out[j + 3] = sum_a, sum_b, sum_c, sum_e
    for j in range(count // 4 * 4, count):
        a = floats(vectors + 4 * j * dim, dim)
        sum_a = np.float32(0)
        for d in range(dim):
            sum_a += one[d] * a[d]
        out[j] = sum_a


@njit(**INLINE)
def _unfold(square: int, grads: np.ndarray, at: int, num_vectors: int, has_diagonal: int) -> None:
    """Spread the pairs' gradients over a V x V matrix: entry (i, j) and its mirror get the pair's.

    d<e_i, e_j> = <de_i, e_j> + <e_i, de_j>, so the diagonal counts twice.
    """
    for i in range(num_vectors):
        row = floats(square + 4 * i * num_vectors, num_vectors)
        for j in range(i):
            row[j] = grads[at]
            floats(square + 4 * j * num_vectors, num_vectors)[i] = grads[at]
            at += 1
        row[i] = np.float32(0)
        if has_diagonal:
            row[i] = np.float32(2) * grads[at]
            at += 1


@njit(**INLINE)
def _weighted_sum(total: np.ndarray, vectors: int, weights: int, num_vectors: int) -> None:
    """Sum the vectors, each times its weight, four at a time."""
    dim, w = len(total), floats(weights, num_vectors)
    for d in range(dim):
        total[d] = np.float32(0)
    for j in range(0, num_vectors - 3, 4):
        first = vectors + 4 * j * dim
        a, b = floats(first, dim), floats(first + 4 * dim, dim)
        c, e = floats(first + 8 * dim, dim), floats(first + 12 * dim, dim)
        w_a, w_b, w_c, w_e = w[j], w[j + 1], w[j + 2], w[j + 3]
        for d in range(dim):
            total[d] += w_a * a[d] + w_b * b[d] + w_c * c[d] + w_e * e[d]
    for j in range(num_vectors // 4 * 4, num_vectors):
        a = floats(vectors + 4 * j * dim, dim)
        for d in range(dim):
            total[d] += w[j] * a[d]
