"""Join the dense vector and the pooled embeddings into the input of the top MLP.

Shapes: B batch, F sparse features, V vectors a sample (F, and one more with a dense vector),
D embedding dim, P pairs: V(V - 1)/2, or V(V + 1)/2 with the diagonal.
"""

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def dot_interaction(dense: Tensor | None, pooled: Tensor, include_diagonal: bool = False) -> Tensor:
    """Join the dense vector with every pairwise dot product.

    With e_0 = dense and e_1..e_F = pooled, emits <e_i, e_j> for i > j, ordered (1,0), (2,0),
    (2,1), ...; with the diagonal for i >= j, ordered (0,0), (1,0), (1,1), (2,0), ... Without a
    dense vector the pooled embeddings alone are numbered, from 0. At least one pair is needed.

    Args:
        dense: Bottom MLP output, shape (B, D); None without dense features.
        pooled: Pooled embeddings, shape (B, F, D), same dtype and device; any strides.
        include_diagonal: Whether to emit each vector's product with itself.

    Returns:
        Shape (B, D + P), dense part first; (B, P) without a dense vector.

    Raises:
        ValueError: The two D differ.

    Source: Naumov et al. 2019, arXiv:1906.00091.
    """
    return cast(Tensor, _DotInteraction.apply(dense, _joined(dense, pooled), include_diagonal))


def cat_interaction(dense: Tensor | None, pooled: Tensor) -> Tensor:
    """Concatenate the dense vector and the pooled embeddings.

    Args:
        dense: Bottom MLP output, shape (B, D); None without dense features.
        pooled: Pooled embeddings, shape (B, F, D), same dtype and device; any strides.

    Returns:
        Shape (B, V * D), dense part first, then feature by feature.

    Raises:
        ValueError: The two D differ.
    """
    return _joined(dense, pooled).flatten(1)


def _joined(dense: Tensor | None, pooled: Tensor) -> Tensor:
    """All vectors of a sample, shape (B, V, D)."""
    if dense is None:
        return pooled
    if dense.shape[-1] != pooled.shape[-1]:
        raise ValueError(
            f"interaction: dense vectors have dim {dense.shape[-1]}, pooled embeddings "
            f"{pooled.shape[-1]}; they must be equal: end the bottom MLP in the embedding dim"
        )
    return torch.cat([dense.unsqueeze(1), pooled], 1)


class _DotInteraction(torch.autograd.Function):
    """Products by one bmm, pairs by one gather; backward by one symmetric gather and one bmm."""

    @staticmethod
    def forward(
        ctx: Any, dense: Tensor | None, vectors_BVD: Tensor, include_diagonal: bool
    ) -> Tensor:
        ctx.save_for_backward(vectors_BVD)
        ctx.dense_width = 0 if dense is None else dense.shape[1]
        ctx.include_diagonal = include_diagonal
        lower, _ = _pair_indices(vectors_BVD.shape[1], include_diagonal, vectors_BVD.device)
        products_BVV = torch.bmm(vectors_BVD, vectors_BVD.transpose(1, 2))
        pairs_BP = products_BVV.flatten(1).index_select(1, lower)
        return pairs_BP if dense is None else torch.cat([dense, pairs_BP], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (vectors_BVD,) = ctx.saved_tensors
        B, V, _ = vectors_BVD.shape
        _, pair_of = _pair_indices(V, ctx.include_diagonal, grad.device)
        # d<e_i, e_j> = <de_i, e_j> + <e_i, de_j>: entry (i, j) and its mirror both get the pair's.
        symmetric_BVV = grad[:, ctx.dense_width :].index_select(1, pair_of).view(B, V, V)
        diagonal = symmetric_BVV.diagonal(dim1=1, dim2=2)
        diagonal.mul_(2) if ctx.include_diagonal else diagonal.zero_()
        grad_dense = grad[:, : ctx.dense_width] if ctx.dense_width else None
        return grad_dense, torch.bmm(symmetric_BVV, vectors_BVD), None


@lru_cache(maxsize=64)
def _pair_indices(
    num_vectors: int, include_diagonal: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where pair p lies in the flat V x V products, shape (P,), and back, shape (V * V,).

    Entries without a pair (the diagonal, when it is left out) point at pair 0.
    """
    with torch.inference_mode(False):  # a tensor made in inference mode could not train later
        i, j = torch.tril_indices(num_vectors, num_vectors, 0 if include_diagonal else -1)
        pair_of = torch.zeros(num_vectors, num_vectors, dtype=torch.int64)
        pair_of[i, j] = pair_of[j, i] = torch.arange(len(i))
        return (i * num_vectors + j).to(device), pair_of.flatten().to(device)
