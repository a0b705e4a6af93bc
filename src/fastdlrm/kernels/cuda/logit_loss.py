"""The last layer, the loss and their gradients in one pass over the activations.

Each program sums over its samples; a second kernel adds the programs' sums in order.

Shapes as in `fastdlrm.kernels.logit_loss`; P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_NUMBERS = 8192
"""Activations that a program holds at a time."""
COLUMNS = 32
ROWS = 64


@triton.jit
def _logit_loss_kernel(
    x, weight, bias, labels, grad, sums, num_samples, x_stride, normalizer, negative, positive,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr, LOSS: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    """Program p: samples p BLOCK_B and on; row p of `sums`, shape (P, 2 K + 2).

    Columns: gradient of the weight, column sums of the activations' gradient, gradient of the
    bias, loss.
    """
    b, k = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_K)
    is_sample = b < num_samples
    mask = is_sample[:, None] & (k < K)[None, :]
    place = b.to(tl.int64)[:, None] * x_stride + k[None, :]
    a = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(weight + k, mask=k < K, other=0.0)
    label = tl.load(labels + b, mask=is_sample, other=0.0)
    z = tl.sum(a * w[None, :], 1) + tl.load(bias)
    e = tl.exp(-tl.abs(z))
    p = tl.where(z >= 0, 1.0, e) / (1.0 + e)
    slope = p - label
    if LOSS == "mse":
        loss = slope * slope
        slope = 2 * slope * p * (1 - p)
    else:
        loss = tl.maximum(z, 0.0) - z * label + tl.log(1.0 + e)
        if LOSS == "weighted_bce":
            share = negative + (positive - negative) * label
            loss, slope = loss * share, slope * share
    loss = tl.where(is_sample, loss, 0.0)
    slope = tl.where(is_sample, slope / normalizer, 0.0)
    g = slope[:, None] * w[None, :]
    if RELU:
        g = tl.where(a > 0, g, 0.0)
    rounded = g.to(grad.dtype.element_ty)
    tl.store(grad + b.to(tl.int64)[:, None] * K + k[None, :], rounded, mask=mask)
    row = sums + tl.program_id(0).to(tl.int64) * (2 * K + 2)
    tl.store(row + k, tl.sum(slope[:, None] * a, 0), mask=k < K)
    tl.store(row + K + k, tl.sum(rounded.to(tl.float32), 0), mask=k < K)
    tl.store(row + 2 * K, tl.sum(slope, 0))
    tl.store(row + 2 * K + 1, tl.sum(loss, 0))


@triton.jit
def _logit_loss_sum_kernel(
    sums, weight_grad, grad_sum, bias_grad, loss, num_programs, normalizer,
    K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Add the rows of `sums`, in order, and write each column where it belongs."""
    n, r = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    width: tl.constexpr = 2 * K + 2
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, num_programs, ROWS):
        mask = (first + r < num_programs)[:, None] & (n < width)[None, :]
        place = (first + r).to(tl.int64)[:, None] * width + n[None, :]
        total += tl.sum(tl.load(sums + place, mask=mask, other=0.0), 0)
    of_weight, of_bias = n < K, n == 2 * K
    if ACCUMULATE:
        old = tl.load(weight_grad + n, mask=of_weight, other=0.0)
        old += tl.load(bias_grad + n - 2 * K, mask=of_bias, other=0.0)
        tl.store(weight_grad + n, total + old, mask=of_weight)
        tl.store(bias_grad + n - 2 * K, total + old, mask=of_bias)
    else:
        tl.store(weight_grad + n, total, mask=of_weight)
        tl.store(bias_grad + n - 2 * K, total, mask=of_bias)
    tl.store(grad_sum + n - K, total, mask=(n >= K) & (n < 2 * K))
    tl.store(loss + n - 2 * K - 1, total / normalizer, mask=n == 2 * K + 1)


def logit_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_grad: Tensor,
    bias_grad: Tensor,
    labels: Tensor,
    *,
    loss_name: str,
    class_weights: tuple[float, float],
    normalizer: float,
    relu: bool,
    accumulate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `fastdlrm.kernels.logit_loss.logit_loss`.

    Returns:
        The loss, the gradient in `x`, and its column sums, shape (K,), float32.
    """
    B, K = x.shape
    block_k = triton.next_power_of_2(K)
    block_b = max(1, min(64, TILE_NUMBERS // block_k))
    num_programs = triton.cdiv(B, block_b)
    sums = torch.empty(num_programs, 2 * K + 2, device=x.device)
    grad = torch.empty(B, K, dtype=x.dtype, device=x.device)
    grad_sum, loss = torch.empty(K, device=x.device), torch.empty((), device=x.device)
    _logit_loss_kernel[(num_programs,)](
        x, weight, bias, labels, grad, sums, B, x.stride(0), float(normalizer), *class_weights, K,
        block_k, block_b, loss_name, relu, num_warps=4,
    )  # fmt: skip
    _logit_loss_sum_kernel[(triton.cdiv(2 * K + 2, COLUMNS),)](
        sums, weight_grad, grad_sum, bias_grad, loss, num_programs, float(normalizer), K, COLUMNS,
        ROWS, accumulate, num_warps=4,
    )  # fmt: skip
    return loss, grad, grad_sum
