"""Join the dense vector and the pooled embeddings into the input of the top MLP.

Shapes: B batch, F sparse features, V vectors a sample (F, and one more with a dense vector),
D embedding dim, P pairs: V(V - 1)/2, or V(V + 1)/2 with the diagonal.
"""

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from fastdlrm.kernels.library import define, has_gpu_kernels, implement, on_first_call


def dot_interaction(
    dense: Tensor | None, pooled: Tensor, include_diagonal: bool = False, width: int = 0
) -> Tensor:
    """Join the dense vector with every pairwise dot product.

    With e_0 = dense and e_1..e_F = pooled, emits <e_i, e_j> for i > j, ordered (1,0), (2,0),
    (2,1), ...; with the diagonal for i >= j, ordered (0,0), (1,0), (1,1), (2,0), ... Without a
    dense vector the pooled embeddings alone are numbered, from 0. At least one pair is needed.

    Args:
        dense: Bottom MLP output, shape (B, D); None without dense features.
        pooled: Pooled embeddings, shape (B, F, D), same dtype and device; any strides.
        include_diagonal: Whether to emit each vector's product with itself.
        width: Pads the result with zero columns to this width; 0: no padding.

    Returns:
        Shape (B, D + P), dense part first; (B, P) without a dense vector.

    Raises:
        ValueError: The two D differ.

    Source: Naumov et al. 2019, arXiv:1906.00091.
    """
    _require_one_dim(dense, pooled)
    return cast(Tensor, _dot_interaction(dense, pooled, include_diagonal, width))


def dot_interaction_backward(
    grad: Tensor,
    dense: Tensor | None,
    pooled: Tensor,
    include_diagonal: bool = False,
    *,
    relu: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """The gradients of `dot_interaction`'s inputs.

    Args:
        grad: Gradient of the result, padding included or not.
        dense: As given to `dot_interaction`.
        pooled: Likewise.
        include_diagonal: Likewise.
        relu: Whether `dense` came out of a ReLU whose input's gradient is asked for instead.

    Returns:
        Of `dense`, shape (B, D), or None; of `pooled`, shape (B, F, D), feature-major in memory.
    """
    grad_dense, grad_pooled = _dot_interaction_backward(grad, dense, pooled, include_diagonal, relu)
    return (None if dense is None else grad_dense), grad_pooled


def lookup_dot_interaction(
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool = False,
    width: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Look up single ids and join them by `dot_interaction`, in one pass where there is a kernel.

    Not differentiable by itself: `lookup_dot_interaction_backward` goes with it.

    Args:
        weight: Rows of all tables, shape (R, D).
        rows: Row of each id, feature by feature, shape (F * B,), int32 or int64.
        dense: Shape (B, D), of type `dtype`; None without dense features.
        num_features: F, at least 1.
        include_diagonal: As in `dot_interaction`.
        width: Likewise.
        dtype: Of the products and the result; None: `weight`'s.

    Returns:
        As `dot_interaction`.
    """
    out = weight.dtype if dtype is None else dtype
    return cast(
        Tensor,
        _lookup_dot_interaction(weight, rows, dense, num_features, include_diagonal, width, out),
    )


def lookup_dot_interaction_backward(
    grad: Tensor,
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool = False,
    *,
    relu: bool = False,
    scatter: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """`dot_interaction_backward` for looked-up ids, which are read again rather than kept.

    Args:
        grad: Gradient of the result, of its type.
        weight: As given to `lookup_dot_interaction`, unchanged since.
        rows: Likewise.
        dense: Likewise.
        num_features: Likewise.
        include_diagonal: Likewise.
        relu: As in `dot_interaction_backward`.
        scatter: Whether the second gradient is laid out as `weight`: no two of `rows` may be equal.

    Returns:
        As `dot_interaction_backward`; with `scatter` the second has `weight`'s shape, the gradient
        of each looked-up vector in its row, zeros in all other rows.
    """
    num_rows = len(weight) if scatter else 0
    grad_dense, grad_pooled = _lookup_dot_interaction_backward(
        grad, weight, rows, dense, num_features, include_diagonal, relu, num_rows
    )
    return (None if dense is None else grad_dense), grad_pooled


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
    _require_one_dim(dense, pooled)
    return _joined(dense, pooled).flatten(1)


def dot_interaction_width(
    num_features: int, embedding_dim: int, has_dense: bool, include_diagonal: bool = False
) -> int:
    """Width of `dot_interaction`'s result without padding: D + P, or P without a dense vector."""
    vectors = num_features + has_dense
    pairs = vectors * (vectors + (1 if include_diagonal else -1)) // 2
    return pairs + (embedding_dim if has_dense else 0)


def _require_one_dim(dense: Tensor | None, pooled: Tensor) -> None:
    if dense is not None and dense.shape[-1] != pooled.shape[-1]:
        raise ValueError(
            f"interaction: dense vectors have dim {dense.shape[-1]}, pooled embeddings "
            f"{pooled.shape[-1]}; they must be equal: end the bottom MLP in the embedding dim"
        )


def _joined(dense: Tensor | None, pooled: Tensor) -> Tensor:
    """All vectors of a sample, shape (B, V, D)."""
    return pooled if dense is None else torch.cat([dense.unsqueeze(1), pooled], 1)


def define_dot_interaction(
    dense: Tensor | None, pooled: Tensor, include_diagonal: bool, width: int
) -> Tensor:
    """The definition: products by one bmm, pairs by one gather."""
    vectors_BVD = _joined(dense, pooled)
    lower, _ = _pair_indices(vectors_BVD.shape[1], include_diagonal, vectors_BVD.device)
    products_BVV = torch.bmm(vectors_BVD, vectors_BVD.transpose(1, 2))
    parts = [products_BVV.flatten(1).index_select(1, lower)]
    if dense is not None:
        parts.insert(0, dense)
    if missing := max(width - sum(part.shape[1] for part in parts), 0):
        parts.append(pooled.new_zeros(len(pooled), missing))
    return torch.cat(parts, 1)


def define_dot_interaction_backward(
    grad: Tensor, dense: Tensor | None, pooled: Tensor, include_diagonal: bool, relu: bool
) -> tuple[Tensor, Tensor]:
    """The definition: one symmetric gather, one bmm; an empty tensor for no dense vector."""
    vectors_BVD = _joined(dense, pooled)
    B, V, D = vectors_BVD.shape
    dense_width = 0 if dense is None else D
    _, pair_of = _pair_indices(V, include_diagonal, grad.device)
    # d<e_i, e_j> = <de_i, e_j> + <e_i, de_j>: entry (i, j) and its mirror both get the pair's.
    symmetric_BVV = grad[:, dense_width:].index_select(1, pair_of).view(B, V, V)
    diagonal = symmetric_BVV.diagonal(dim1=1, dim2=2)
    diagonal.mul_(2) if include_diagonal else diagonal.zero_()
    grads_BVD = torch.bmm(symmetric_BVV, vectors_BVD)
    if dense is None:
        return grad.new_empty(0), feature_major(grads_BVD)
    grad_dense = grads_BVD[:, 0] + grad[:, :dense_width]
    if relu:
        grad_dense = torch.ops.aten.threshold_backward(grad_dense, dense, 0)
    return grad_dense, feature_major(grads_BVD[:, 1:])


def _looked_up(weight: Tensor, rows: Tensor, num_features: int, dtype: torch.dtype) -> Tensor:
    """Shape (B, F, D)."""
    picked = weight.index_select(0, rows).to(dtype)
    return picked.view(num_features, -1, weight.shape[1]).transpose(0, 1)


def _lookup_forward(
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    pooled = _looked_up(weight, rows, num_features, dtype)
    return define_dot_interaction(dense, pooled, include_diagonal, width)


def _lookup_backward(
    grad: Tensor,
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool,
    relu: bool,
    scatter_rows: int,
) -> tuple[Tensor, Tensor]:
    """`scatter_rows`: rows of the second gradient's layout as `weight`, 0 for (B, F, D)."""
    pooled = _looked_up(weight, rows, num_features, grad.dtype)
    grads = define_dot_interaction_backward(grad, dense, pooled, include_diagonal, relu)
    if not scatter_rows:
        return grads
    scattered = grad.new_zeros(scatter_rows, weight.shape[1])
    return grads[0], scattered.index_copy_(0, rows.long(), grads[1].transpose(0, 1).flatten(0, 1))


def feature_major(grads_BFD: Tensor) -> Tensor:
    """A copy whose memory holds feature after feature, as the tables' optimizer reads it."""
    return grads_BFD.transpose(0, 1).contiguous().transpose(0, 1)


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


def _fake(dense: Tensor | None, pooled: Tensor, include_diagonal: bool, width: int) -> Tensor:
    B, num_features, D = pooled.shape
    natural = dot_interaction_width(num_features, D, dense is not None, include_diagonal)
    return pooled.new_empty(B, max(natural, width))


def _fake_backward(
    grad: Tensor, dense: Tensor | None, pooled: Tensor, include_diagonal: bool, relu: bool
) -> tuple[Tensor, Tensor]:
    B, num_features, D = pooled.shape
    grad_pooled = pooled.new_empty(num_features, B, D).transpose(0, 1)
    return grad.new_empty(0) if dense is None else torch.empty_like(dense), grad_pooled


def _fake_lookup(
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    B, D = rows.shape[0] // num_features, weight.shape[1]
    natural = dot_interaction_width(num_features, D, dense is not None, include_diagonal)
    return weight.new_empty(B, max(natural, width), dtype=dtype)


def _fake_lookup_backward(
    grad: Tensor,
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool,
    relu: bool,
    scatter_rows: int,
) -> tuple[Tensor, Tensor]:
    B, D = rows.shape[0] // num_features, weight.shape[1]
    grad_pooled = grad.new_empty(num_features, B, D).transpose(0, 1)
    if scatter_rows:
        grad_pooled = grad.new_empty(scatter_rows, D)
    return grad.new_empty(0) if dense is None else torch.empty_like(dense), grad_pooled


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, pooled, ctx.include_diagonal, _ = inputs
    ctx.save_for_backward(dense, pooled)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
    dense, pooled = ctx.saved_tensors
    return *dot_interaction_backward(grad, dense, pooled, ctx.include_diagonal), None, None


_dot_interaction_backward = define(
    "dot_interaction_backward(Tensor grad, Tensor? dense, Tensor pooled, bool include_diagonal,"
    " bool relu) -> (Tensor, Tensor)",
    define_dot_interaction_backward,
    fake=_fake_backward,
)
_dot_interaction = define(
    "dot_interaction(Tensor? dense, Tensor pooled, bool include_diagonal, int width) -> Tensor",
    define_dot_interaction,
    fake=_fake,
    backward=_autograd,
    setup_context=_setup_context,
)
_lookup_dot_interaction = define(
    "lookup_dot_interaction(Tensor weight, Tensor rows, Tensor? dense, int num_features,"
    " bool include_diagonal, int width, ScalarType dtype) -> Tensor",
    _lookup_forward,
    fake=_fake_lookup,
)
_lookup_dot_interaction_backward = define(
    "lookup_dot_interaction_backward(Tensor grad, Tensor weight, Tensor rows, Tensor? dense,"
    " int num_features, bool include_diagonal, bool relu, int scatter_rows) -> (Tensor, Tensor)",
    _lookup_backward,
    fake=_fake_lookup_backward,
)

_ON_CPU = "fastdlrm.kernels.cpu.interaction"
implement("dot_interaction", "cpu", on_first_call(_ON_CPU, "dot_interaction"))
implement("dot_interaction_backward", "cpu", on_first_call(_ON_CPU, "dot_interaction_backward"))

if has_gpu_kernels():
    import fastdlrm.kernels.cuda.interaction  # noqa: F401
