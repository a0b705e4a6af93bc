"""A factorization machine over the vectors of a sample, forward and backward, without autograd.

With e_1 .. e_V the vectors, the first number of each is a weight and the others are its factors:
y = sum of e_v[0] + sum over u < v of <e_u[1:], e_v[1:]>. The pairs are summed as half of the square
of the sum less the sum of the squares, which takes V D products rather than V^2 D / 2.

Shapes: B batch, F sparse features, V vectors a sample (F, and one more with a dense vector),
D embedding dim.

Source: Rendle 2010, Factorization Machines, equation 1 and lemma 3.1.
"""

import torch
from torch import Tensor


def factorization(vector: Tensor | None, pooled: Tensor) -> Tensor:
    """Compute y; torch's autograd knows all of it.

    Args:
        vector: Shape (B, D); None without dense features.
        pooled: Shape (B, F, D), of the same type; any strides.

    Returns:
        Shape (B, 1), of float32 or wider: a logit in 16 bits would move probabilities.
    """
    wide = pooled.to(at_least_float32(pooled.dtype))
    total, squares = wide.sum(1), wide.square().sum(1)
    if vector is not None:
        wide = vector.to(wide.dtype)
        total, squares = total + wide, squares + wide.square()
    pairs = (total.square() - squares)[:, 1:].sum(1) / 2
    return (total[:, 0] + pairs).unsqueeze(1)


def factorization_backward(
    grad: Tensor, vector: Tensor | None, pooled: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The gradients of `factorization`'s inputs: grad * (1, sum of the others' factors).

    Args:
        grad: Of y, shape (B, 1).
        vector: As given to `factorization`.
        pooled: Likewise.

    Returns:
        Of `vector`, shape (B, D), or None; of `pooled`, shape (B, F, D); of their type.
    """
    wide = at_least_float32(pooled.dtype)
    total, grad = pooled.sum(1, dtype=wide), grad.to(wide)
    if vector is not None:
        total += vector

    def of(vectors: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        others = total - vectors
        others[..., 0] = 1
        return others.mul_(grad).to(vectors.dtype)

    grad_vector = None if vector is None else of(vector, total, grad)
    return grad_vector, of(pooled, total.unsqueeze(1), grad.unsqueeze(1))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type itself, or float32 for one of 16 bits."""
    return torch.promote_types(dtype, torch.float32)
