"""Optimizer updates in place, of the rows of a `RowGradient` alone: no other row or state moves.

Shapes: R rows of all tables together, D embedding dim, U rows of the gradient.
"""

import math

import torch
from torch import Tensor

from fastdlrm.kernels.row_gradient import RowGradient


@torch.no_grad()
def sgd_update_(weight: Tensor, gradient: RowGradient, *, learning_rate: float) -> None:
    """w -= lr g.

    Args:
        weight: Shape (R, D).
        gradient: Of `weight`.
        learning_rate: lr.
    """
    rows, values = gradient
    weight.index_copy_(0, rows, weight.index_select(0, rows).add_(values, alpha=-learning_rate))


@torch.no_grad()
def adagrad_update_(
    weight: Tensor, square_sum: Tensor, gradient: RowGradient, *, learning_rate: float, eps: float
) -> None:
    """s += g^2; w -= lr g / (sqrt(s) + eps), number by number.

    Args:
        weight: Shape (R, D).
        square_sum: s, shape (R, D).
        gradient: Of `weight`.
        learning_rate: lr.
        eps: Keeps the denominator from zero.

    Source: Duchi et al. 2011, JMLR 12.
    """
    rows, values = gradient
    new_sum = square_sum.index_select(0, rows).addcmul_(values, values)
    square_sum.index_copy_(0, rows, new_sum)
    _descend(weight, rows, values, new_sum.sqrt_().add_(eps), learning_rate)


@torch.no_grad()
def rowwise_adagrad_update_(
    weight: Tensor, square_sum: Tensor, gradient: RowGradient, *, learning_rate: float, eps: float
) -> None:
    """s += mean of g^2 over D; w -= lr g / (sqrt(s) + eps), with one s a row.

    Args:
        weight: Shape (R, D).
        square_sum: s, shape (R,).
        gradient: Of `weight`.
        learning_rate: lr.
        eps: Keeps the denominator from zero.

    Source: the row-wise sparse Adagrad of the DLRM reference implementation.
    """
    rows, values = gradient
    new_sum = square_sum.index_select(0, rows).add_(values.square().mean(1))
    square_sum.index_copy_(0, rows, new_sum)
    _descend(weight, rows, values, new_sum.sqrt_().add_(eps).unsqueeze(1), learning_rate)


@torch.no_grad()
def adam_update_(
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: RowGradient,
    *,
    step: int,
    learning_rate: float,
    eps: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> None:
    """Lazy Adam: m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr m' / (sqrt(v') + eps).

    m' = m / (1 - b1^t) and v' = v / (1 - b2^t), where t counts the optimizer's steps, not the
    row's: where every row is in every batch this is Adam.

    Args:
        weight: Shape (R, D).
        first: m, shape (R, D).
        second: v, shape (R, D).
        gradient: Of `weight`.
        step: t, from 1.
        learning_rate: lr.
        eps: Keeps the denominator from zero.
        betas: b1 and b2.

    Source: Kingma and Ba 2015, arXiv:1412.6980; bias correction as in torch.optim.SparseAdam.
    """
    rows, values = gradient
    b1, b2 = betas
    new_first = first.index_select(0, rows).lerp_(values, 1 - b1)
    first.index_copy_(0, rows, new_first)
    new_second = second.index_select(0, rows).mul_(b2).addcmul_(values, values, value=1 - b2)
    second.index_copy_(0, rows, new_second)
    denominator = new_second.sqrt_().div_(math.sqrt(1 - b2**step)).add_(eps)
    _descend(weight, rows, new_first, denominator, learning_rate / (1 - b1**step))


def _descend(
    weight: Tensor, rows: Tensor, direction: Tensor, denominator: Tensor, learning_rate: float
) -> None:
    """w -= lr direction / denominator, on `rows`."""
    moved = weight.index_select(0, rows).addcdiv_(direction, denominator, value=-learning_rate)
    weight.index_copy_(0, rows, moved)
