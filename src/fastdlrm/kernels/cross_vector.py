"""A cross network whose layers have a vector each, forward and backward, without autograd.

x_{l+1} = x_0 (x_l . w_l) + b_l + x_l. Every x_l is alpha_l x_0 + beta_l with a number alpha_l a
sample and a vector beta_l for all of them, so one product with x_0 is all that depends on W and B:
with p_l = x_0 . w_l, beta_{l+1} = beta_l + b_l and
alpha_{l+1} = alpha_l (1 + p_l) + beta_l . w_l, from alpha_0 = 1 and beta_0 = 0.

Shapes: B batch, W width, n layers.

Source: Wang et al. 2017 (DCN), arXiv:1708.05123, equation 3; its proof of theorem 3.1 for alpha.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdlrm.kernels.factorization import at_least_float32
from fastdlrm.kernels.mlp import weight_gradient


class CrossVectors(NamedTuple):
    """All layers' tensors.

    Attributes:
        weight: w_l, shape (n, W), of the compute type; `bias` likewise.
        bias: b_l, shape (n, W).
        weight_grad: Shape (n, W), float32; `bias_grad` likewise.
        bias_grad: Shape (n, W).
    """

    weight: Tensor
    bias: Tensor
    weight_grad: Tensor
    bias_grad: Tensor


class Scales(NamedTuple):
    """What stands for x_0 .. x_n, of float32 or wider: alpha is a product of n numbers.

    Attributes:
        alpha: alpha_0 .. alpha_n, shape (B,) each.
        beta: beta_0 .. beta_n, shape (n + 1, W).
        factors: 1 + p_l, shape (B,) each.
    """

    alpha: list[Tensor]
    beta: Tensor
    factors: list[Tensor]


def scales_of(products: Tensor, weight: Tensor, bias: Tensor) -> Scales:
    """Alpha and beta of all layers.

    Args:
        products: p_l, shape (B, n).
        weight: Shape (n, W).
        bias: Shape (n, W).
    """
    wide = at_least_float32(products.dtype)
    steps = bias.to(wide).cumsum(0)
    beta = torch.cat([torch.zeros_like(steps[:1]), steps])
    constants = (beta[:-1] * weight).sum(1)
    factors = list((products.to(wide) + 1).unbind(1))
    alpha = [torch.ones_like(factors[0])]
    for factor, constant in zip(factors, constants.unbind(), strict=True):
        alpha.append(alpha[-1] * factor + constant)
    return Scales(alpha, beta, factors)


def cross_vector(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x_n; torch's autograd knows all of it.

    Args:
        x: x_0, shape (B, W).
        weight: w_l, shape (n, W), n >= 1, of `x`'s type; `bias` likewise.
        bias: b_l, shape (n, W).
    """
    alpha, beta, _ = scales_of(x @ weight.t(), weight, bias)
    return (alpha[-1].unsqueeze(1) * x + beta[-1]).to(x.dtype)


def cross_vector_backward(
    grad: Tensor, x: Tensor, layers: CrossVectors, accumulate: bool
) -> Tensor:
    """The gradients of all parameters, written, and of x_0, returned.

    Args:
        grad: Of x_n, shape (B, W), of the compute type.
        x: As given to `cross_vector`.
        layers: Their gradients are written.
        accumulate: Whether to add to them instead.

    Returns:
        Shape (B, W), of the compute type.
    """
    weight = layers.weight
    alpha, beta, factors = scales_of(x @ weight.t(), weight, layers.bias)
    later = (grad.to(beta.dtype) * x).sum(1)  # of alpha_{l+1}
    of_products, of_constants = [], []
    for index in range(len(factors) - 1, -1, -1):
        of_products.append(later * alpha[index])
        of_constants.append(later.sum())
        later = later * factors[index]
    grad_products = torch.stack(of_products[::-1], 1).to(x.dtype)
    grad_constants = torch.stack(of_constants[::-1]).unsqueeze(1)
    weight_gradient(layers.weight_grad, grad_products, x, accumulate)
    layers.weight_grad.add_(grad_constants * beta[:-1])
    of_beta = torch.cat([grad_constants * weight, grad.sum(0, keepdim=True, dtype=beta.dtype)])
    grad_bias = of_beta[1:].flip(0).cumsum(0).flip(0)  # b_l is part of every later beta
    layers.bias_grad.copy_(layers.bias_grad + grad_bias if accumulate else grad_bias)
    return (alpha[-1].unsqueeze(1) * grad + grad_products @ weight).to(x.dtype)
