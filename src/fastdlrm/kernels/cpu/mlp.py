"""What surrounds a layer's matrix products on the CPU: bias and ReLU, and their backward pass.

Invariant: a bias' gradient is summed over pieces of samples that do not depend on the number of
threads, so neither does the result.

Shapes: B batch, N outputs of a layer.
"""

from functools import lru_cache

import numpy as np
import torch
from numba import cfunc, types
from torch import Tensor

from fastdlrm.kernels.cpu.native import (
    COMPILE,
    block_of,
    floats,
    from_bf16,
    halves,
    next_piece,
)
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.mlp import define_bias_relu_, define_relu_backward_

PIECE = 16
"""Samples a thread takes at once, going forward."""

MAX_PIECES = 32
"""Of a batch, going backward: each has a sum of its own."""

SMALL_NUMBERS = 2**14
"""Below this many numbers one thread is faster."""


def bias_relu_(x: Tensor, bias: Tensor) -> None:
    """See `fastdlrm.kernels.mlp.linear_relu`: x = max(x + bias, 0); the kernel knows float32."""
    if x.dtype != torch.float32 or not x.is_contiguous():
        define_bias_relu_(x, bias)
        return
    B, N = x.shape
    bias = bias.contiguous()
    is_small = x.numel() < SMALL_NUMBERS
    run(_forward_kernel(), x.data_ptr(), bias.data_ptr(), B, N, is_small=is_small)


def relu_backward_(grad: Tensor, y: Tensor, bias_grad: Tensor, accumulate: bool) -> None:
    """See `fastdlrm.kernels.mlp.relu_backward_`; the kernel knows float32 and bfloat16."""
    has_kernel = grad.dtype in (torch.float32, torch.bfloat16) and grad.dtype == y.dtype
    if not (has_kernel and grad.is_contiguous() and y.is_contiguous()):
        define_relu_backward_(grad, y, bias_grad, accumulate)
        return
    B, N = grad.shape
    num_pieces = max(min(B, MAX_PIECES), 1)
    sums = torch.empty(num_pieces, N)
    run(
        _backward_kernel(),
        grad.data_ptr(),
        y.data_ptr(),
        B,
        N,
        grad.dtype == torch.bfloat16,
        sums.data_ptr(),
        num_pieces,
        is_small=grad.numel() < SMALL_NUMBERS,
    )
    if accumulate:
        bias_grad.add_(sums.sum(0))
    else:
        torch.sum(sums, 0, out=bias_grad)


@lru_cache(maxsize=1)
def _forward_kernel() -> int:
    return cfunc(types.void(types.int64), **COMPILE)(_forward).address


@lru_cache(maxsize=1)
def _backward_kernel() -> int:
    return cfunc(types.void(types.int64), **COMPILE)(_backward).address


def _forward(address: int) -> None:
    block = block_of(address, 5)
    x, B, N = block[1], block[3], block[4]
    bias = floats(block[2], N)
    while True:
        start = next_piece(address) * PIECE
        if start >= B:
            return
        for b in range(start, min(start + PIECE, B)):
            row = floats(x + 4 * b * N, N)
            for n in range(N):
                moved = row[n] + bias[n]
                # a NaN is not below zero and stays
                row[n] = np.float32(0) if moved < np.float32(0) else moved


def _backward(address: int) -> None:
    block = block_of(address, 8)
    grad, y, B, N, is_bf16, pieces = block[1], block[2], block[3], block[4], block[5], block[7]
    while True:
        piece = next_piece(address)
        if piece >= pieces:
            return
        total = floats(block[6] + 4 * piece * N, N)
        for n in range(N):
            total[n] = np.float32(0)
        for b in range(B * piece // pieces, B * (piece + 1) // pieces):
            if is_bf16:
                bits, outputs = halves(grad + 2 * b * N, N), halves(y + 2 * b * N, N)
                for n in range(N):
                    # as bits, positive numbers are 1 to 0x7FFF
                    passes = np.uint16(outputs[n] - np.uint16(1)) < np.uint16(0x7FFF)
                    kept = bits[n] if passes else np.uint16(0)
                    bits[n] = kept
                    total[n] += from_bf16(kept)
            else:
                numbers, shown = floats(grad + 4 * b * N, N), floats(y + 4 * b * N, N)
                for n in range(N):
                    number = numbers[n] if shown[n] > np.float32(0) else np.float32(0)
                    numbers[n] = number
                    total[n] += number
