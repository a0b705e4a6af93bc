"""A cross network of low rank, forward and backward, without autograd.

x_{l+1} = x_0 * (U_l V_l x_l + b_l) + x_l, element by element. Parameters come in the compute type;
their gradients are written in float32, into tensors that the caller owns.

Shapes: B batch, W width, r rank, n layers.

Source: Wang et al. 2020 (DCN-v2), arXiv:2008.13535, equation 2.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fastdlrm.kernels.interaction import feature_major
from fastdlrm.kernels.library import define, has_gpu_kernels
from fastdlrm.kernels.mlp import bias_gradient, weight_gradient


class CrossLayer(NamedTuple):
    """A layer's tensors.

    Attributes:
        v: Shape (r, W), of the compute type; `u` and `bias` likewise.
        u: Shape (W, r).
        bias: Shape (W,).
        v_grad: Shape (r, W), float32; `u_grad` and `bias_grad` likewise.
        u_grad: Shape (W, r).
        bias_grad: Shape (W,).
    """

    v: Tensor
    u: Tensor
    bias: Tensor
    v_grad: Tensor
    u_grad: Tensor
    bias_grad: Tensor


class Crossed(NamedTuple):
    """A forward pass: what the backward pass needs.

    Attributes:
        inputs: x_0 .. x_n, each of shape (B, W); the last is the result.
        narrow: V_l x_l of each layer, shape (B, r).
        wide: U_l V_l x_l + b_l of each layer, shape (n, B, W).
    """

    inputs: list[Tensor]
    narrow: list[Tensor]
    wide: Tensor


def cross_forward(x: Tensor, layers: Sequence[CrossLayer]) -> Crossed:
    """Compute x_n.

    Args:
        x: x_0, shape (B, W).
        layers: In order; at least one.
    """
    inputs, narrow = [x], []
    wide = x.new_empty(len(layers), *x.shape)
    for layer, y in zip(layers, wide, strict=True):
        h = inputs[-1] @ layer.v.t()
        torch.addmm(layer.bias, h, layer.u.t(), out=y)
        inputs.append(torch.addcmul(inputs[-1], x, y))
        narrow.append(h)
    return Crossed(inputs, narrow, wide)


def cross_backward(
    grad: Tensor,
    kept: Crossed,
    layers: Sequence[CrossLayer],
    shape: tuple[int, int],
    *,
    has_dense: bool,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gradients of all parameters, and of the vectors that x_0 holds side by side.

    With g_l the gradient of x_l: y_l = U_l V_l x_l + b_l has the gradient g_{l+1} * x_0, from which
    g_l = g_{l+1} + V_l^T U_l^T (g_{l+1} * x_0); x_0 itself has g_0 + sum of g_{l+1} * y_l.

    Args:
        grad: g_n, shape (B, W), of the compute type.
        kept: As `cross_forward` returned it.
        layers: The same layers; their gradients are written.
        shape: Number and D of the vectors; columns of x_0 beyond them are padding.
        has_dense: Whether the first of them came out of a ReLU whose input's gradient is asked for.
        accumulate: Whether to add to the layers' gradients instead.

    Returns:
        Of the dense vector, shape (B, D), empty without one; of the others, shape (B, F, D),
        feature-major in memory.
    """
    start = kept.inputs[0]
    grads, later = torch.empty_like(kept.wide), grad
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        grad_y = later * start
        bias_gradient(layer.bias_grad, grad_y, None, accumulate)
        weight_gradient(layer.u_grad, grad_y, kept.narrow[index], accumulate)
        grad_h = grad_y @ layer.u
        weight_gradient(layer.v_grad, grad_h, kept.inputs[index], accumulate)
        later = torch.addmm(later, grad_h, layer.v, out=grads[index])
    return cast(
        tuple[Tensor, Tensor], _cross_input_grad(grad, grads, kept.wide, start, *shape, has_dense)
    )


def define_cross_input_grad(
    grad: Tensor,
    grads: Tensor,
    wide: Tensor,
    start: Tensor,
    num_vectors: int,
    dim: int,
    has_dense: bool,
) -> tuple[Tensor, Tensor]:
    """The definition: g_0 + sum of g_{l+1} * y_l, cut into vectors; `grads` are g_0 .. g_{n-1}."""
    last = len(wide) - 1
    total = torch.addcmul(grads[0], grad, wide[last])
    for index in range(last):
        total.addcmul_(grads[index + 1], wide[index])
    vectors_BVD = total[:, : num_vectors * dim].unflatten(1, (num_vectors, dim))
    if not has_dense:
        return total.new_empty(0), feature_major(vectors_BVD)
    grad_dense = torch.ops.aten.threshold_backward(vectors_BVD[:, 0], start[:, :dim], 0)
    return grad_dense, feature_major(vectors_BVD[:, 1:])


_cross_input_grad = define(
    "cross_input_grad(Tensor grad, Tensor grads, Tensor wide, Tensor start, int num_vectors,"
    " int dim, bool has_dense) -> (Tensor, Tensor)",
    define_cross_input_grad,
)

if has_gpu_kernels():
    import fastdlrm.kernels.cuda.cross  # noqa: F401
