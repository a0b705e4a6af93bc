"""Backward of a cross network: the gradient of its start in one pass over what was kept.

Shapes as in `fastdlrm.kernels.cross`.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdlrm.kernels.library import implement

TILE_NUMBERS = 2048
"""Numbers of gradient that a program holds: samples times columns."""


@triton.jit
def _cross_input_grad_kernel(
    grad, grads, wide, start, grad_dense, grad_pooled, B, W, stride_grad,
    LAYERS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr,
    HAS_DENSE: tl.constexpr,
):  # fmt: skip
    """One vector of a few samples; the second axis of the grid are the vectors."""
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    v, d = tl.program_id(1), tl.arange(0, BLOCK_D)
    mask = (b < B)[:, None] & (d < D)[None, :]
    column = v * D + d
    place = b[:, None] * W + column[None, :]
    layer = tl.cast(B, tl.int64) * W
    total = tl.load(grads + place, mask=mask, other=0.0).to(tl.float32)
    for index in tl.static_range(LAYERS):
        if index == LAYERS - 1:
            later = grad + b[:, None] * stride_grad + column[None, :]
        else:
            later = grads + (index + 1) * layer + place
        g = tl.load(later, mask=mask, other=0.0).to(tl.float32)
        total += g * tl.load(wide + index * layer + place, mask=mask, other=0.0).to(tl.float32)
    inner = b[:, None] * D + d[None, :]
    if HAS_DENSE and v == 0:
        x = tl.load(start + place, mask=mask, other=0.0)
        total = tl.where(x > 0, total, 0.0)
        tl.store(grad_dense + inner, total.to(grad_dense.dtype.element_ty), mask=mask)
    else:
        feature = v - 1 if HAS_DENSE else v
        out = grad_pooled + feature.to(tl.int64) * B * D + inner
        tl.store(out, total.to(grad_pooled.dtype.element_ty), mask=mask)


def cross_input_grad(
    grad: Tensor,
    grads: Tensor,
    wide: Tensor,
    start: Tensor,
    num_vectors: int,
    dim: int,
    has_dense: bool,
) -> tuple[Tensor, Tensor]:
    """As the definition."""
    B, W = start.shape
    grad_dense = grad.new_empty((B, dim) if has_dense else 0)
    grad_pooled = grad.new_empty(num_vectors - has_dense, B, dim)
    if B:
        block_d = triton.next_power_of_2(dim)
        block_b = max(1, TILE_NUMBERS // block_d)
        _cross_input_grad_kernel[(triton.cdiv(B, block_b), num_vectors)](
            grad, grads, wide, start.contiguous(), grad_dense, grad_pooled, B, W, grad.stride(0),
            len(wide), dim, block_d, block_b, has_dense, num_warps=4,
        )  # fmt: skip
    return grad_dense, grad_pooled.transpose(0, 1)


implement("cross_input_grad", "cuda", cross_input_grad)
