"""Backward of linear layers in bf16: the ReLU and the bias gradient in the matrix product.

The gradient of a layer's input is masked by the ReLU that made the input, and its column sums, the
gradient of the bias before, are taken while the product is still in registers: otherwise three
passes over an activation-sized tensor.

Shapes as in `fastdlrm.kernels.mlp`.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

BLOCK = 128
"""Rows and columns of a tile of the result."""
BLOCK_N = 64
"""Columns of `grad` multiplied at a time."""
ALIGNED_NUMBERS = 8
"""Strides the copy engine takes: multiples of 16 bytes."""


@triton.jit
def _masked_half(x, out, sums, half, tile_b, k, K, BLOCK: tl.constexpr):
    """Mask half a tile, write it and its column sums."""
    a = x.load([tile_b * BLOCK, k])
    rounded = tl.where(a > 0, half, 0.0).to(a.dtype)
    out.store([tile_b * BLOCK, k], rounded)
    column = k + tl.arange(0, BLOCK // 2)
    tl.store(sums + tile_b * K + column, tl.sum(rounded.to(tl.float32), 0), mask=column < K)


@triton.jit
def _masked_input_grad_kernel(
    grad, weight, x, out, sums, N, K, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A tile of out = grad @ weight where x > 0, and its column sums as a row of `sums`.

    The tile is finished in two halves: the second one's input arrives while the first is written.
    """
    num_k = tl.cdiv(K, BLOCK)
    tile_b, k = tl.program_id(0) // num_k, tl.program_id(0) % num_k * BLOCK
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for n in range(0, N, BLOCK_N):
        total = tl.dot(grad.load([tile_b * BLOCK, n]), weight.load([n, k]), total)
    halves = tl.permute(tl.reshape(total, (BLOCK, 2, BLOCK // 2)), (0, 2, 1))
    left, right = tl.split(halves)
    _masked_half(x, out, sums, left, tile_b, k, K, BLOCK)
    _masked_half(x, out, sums, right, tile_b, k + BLOCK // 2, K, BLOCK)


def can_mask_input_grad(grad: Tensor, weight: Tensor, x: Tensor) -> bool:
    """Whether `masked_input_grad` takes these: bf16 on a GPU with a copy engine, rows aligned."""
    return (
        grad.dtype == torch.bfloat16
        and grad.is_cuda
        and torch.cuda.get_device_capability(grad.device) >= (9, 0)
        and all(t.stride(0) % ALIGNED_NUMBERS == 0 for t in (grad, weight, x))
        and all(t.stride(1) == 1 for t in (grad, weight, x))
        and weight.shape[1] % ALIGNED_NUMBERS == 0
    )


def masked_input_grad(grad: Tensor, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of a layer's input before the ReLU that made it.

    Args:
        grad: Gradient of the layer's result before its ReLU, shape (B, N).
        weight: Shape (N, K).
        x: The layer's input, shape (B, K), out of a ReLU.

    Returns:
        Shape (B, K); and its partial column sums, shape (any, K), float32.
    """
    B, N = grad.shape
    K = weight.shape[1]
    num_b = triton.cdiv(B, BLOCK)
    out = torch.empty(B, K, dtype=grad.dtype, device=grad.device)
    sums = torch.empty(num_b, K, dtype=torch.float32, device=grad.device)
    describe = TensorDescriptor.from_tensor
    _masked_input_grad_kernel[(num_b * triton.cdiv(K, BLOCK),)](
        describe(grad, [BLOCK, BLOCK_N]), describe(weight, [BLOCK_N, BLOCK]),
        describe(x, [BLOCK, BLOCK // 2]), describe(out, [BLOCK, BLOCK // 2]), sums, N, K, BLOCK,
        BLOCK_N, num_stages=3, num_warps=4,
    )  # fmt: skip
    return out, sums


def column_sums(x: Tensor, out: Tensor) -> None:
    """Sum over rows in float32, as a product with ones, which is faster than a reduction.

    Args:
        x: Shape (B, K), of 16 bits.
        out: Shape (K,), float32.
    """
    ones = _ones(x.shape[0], x.dtype, x.device)
    torch.mm(ones, x, out_dtype=torch.float32, out=out.unsqueeze(0))


@lru_cache(maxsize=16)
def _ones(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(1, count, dtype=dtype, device=device)
