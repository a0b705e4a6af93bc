"""An interaction within the train step, forward and backward, over the dense optimizer's tensors.

Shapes: B batch, F sparse features, D embedding dim, K inputs of the top MLP, padding included.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdlrm.kernels.cross import CrossLayer, cross_backward, cross_forward
from fastdlrm.kernels.interaction import (
    cat_interaction,
    dot_interaction,
    dot_interaction_backward,
    lookup_dot_interaction,
    lookup_dot_interaction_backward,
)
from fastdlrm.kernels.mlp import mlp_backward, mlp_forward
from fastdlrm.model.interaction import (
    CatInteraction,
    CrossInteraction,
    DotInteraction,
    Interaction,
    ProjectionInteraction,
)
from fastdlrm.model.lookup import Lookup, RowSource
from fastdlrm.model.mlp import layers_of
from fastdlrm.train.dense_optimizer import DenseOptimizer

Gradients = tuple[Tensor | None, Tensor]
"""Of the bottom MLP's result before its ReLU, shape (B, D), and of the pooled vectors, as `Lookup`
asks."""

Backward = Callable[[Tensor, bool], Gradients]
"""The gradient of the result, shape (B, K), and whether to add to the parameters' gradients."""


class Join(Protocol):
    """An interaction with its parameters in the compute type."""

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        """Join a batch.

        Args:
            lookup: Of its ids.
            vector: The bottom MLP's result, shape (B, D), of the compute type.
            num_samples: B.

        Returns:
            The top MLP's input, shape (B, K); what the backward pass is to call once.
        """
        ...


class _Dot:
    def __init__(self, interaction: DotInteraction, optimizer: DenseOptimizer, width: int) -> None:
        self._include_diagonal = interaction.include_diagonal
        self._dtype = optimizer.compute.dtype
        self._width = width

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        diagonal = self._include_diagonal
        if (source := lookup.source()) is not None:
            return self._of_rows(source, vector, len(source.rows) // num_samples)
        pooled = pooled_of(lookup, self._dtype, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            return dot_interaction_backward(grad, vector, pooled, diagonal, relu=True)

        return dot_interaction(vector, pooled, diagonal, self._width), backward

    def _of_rows(
        self, source: RowSource, vector: Tensor | None, num_features: int
    ) -> tuple[Tensor, Backward]:
        """Reads the rows within the kernels, twice, rather than keep them."""
        weight, rows, scatter = source
        of = (weight, rows, vector, num_features, self._include_diagonal)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            return lookup_dot_interaction_backward(grad, *of, relu=True, scatter=scatter)

        return lookup_dot_interaction(*of, self._width, self._dtype), backward


class _Cat:
    def __init__(self, interaction: Interaction, optimizer: DenseOptimizer, width: int) -> None:
        self._dtype = optimizer.compute.dtype
        self._width = width

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        pooled = pooled_of(lookup, self._dtype, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            B, num_features, D = pooled.shape
            first = 0 if vector is None else D
            grad_pooled = grad[:, first : first + num_features * D].view(B, num_features, D)
            if vector is None:
                return None, grad_pooled
            return torch.ops.aten.threshold_backward(grad[:, :D], vector, 0), grad_pooled

        return widened(cat_interaction(vector, pooled), self._width), backward


class _Cross:
    def __init__(
        self, interaction: CrossInteraction, optimizer: DenseOptimizer, width: int
    ) -> None:
        self._cat = _Cat(interaction, optimizer, width)
        self._shape = interaction.vectors.num_vectors, interaction.vectors.dim
        self._layers = []
        for index in range(len(interaction.layers)):
            names = (f"interaction.layers.{index}.{name}" for name in ("v", "u", "bias"))
            values, grads = zip(*(optimizer.tensors(name) for name in names), strict=True)
            self._layers.append(CrossLayer(*values, *grads))

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        start, _ = self._cat(lookup, vector, num_samples)
        crossed = cross_forward(start, self._layers)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            has_dense = vector is not None
            grad_vector, grad_pooled = cross_backward(
                grad, crossed, self._layers, self._shape, has_dense=has_dense, accumulate=accumulate
            )
            return (grad_vector if has_dense else None), grad_pooled

        return crossed.inputs[-1], backward


class _Projection:
    def __init__(
        self, interaction: ProjectionInteraction, optimizer: DenseOptimizer, width: int
    ) -> None:
        self._dim = interaction.vectors.dim
        cat_width = optimizer.padded(interaction.vectors.width)
        self._cat = _Cat(interaction, optimizer, cat_width)
        self._width = width
        self._branches = []
        for branch in ("branch1", "branch2"):
            mlp: Any = getattr(interaction, branch)
            *hidden, last = [f"interaction.{branch}.{index}" for index in linears(mlp)]
            layers = [optimizer.layer(name, pad_outputs=True) for name in hidden]
            self._branches.append([*layers, optimizer.layer(last, pad_outputs=False)])

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        D = self._dim
        start, cat_backward = self._cat(lookup, vector, num_samples)
        kept = [mlp_forward(start, branch) for branch in self._branches]
        first, second = kept[0][-1].unflatten(1, (-1, D)), kept[1][-1].unflatten(1, (D, -1))
        products = torch.bmm(first, second)
        parts = [products.flatten(1)] if vector is None else [vector, products.flatten(1)]

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            begin = 0 if vector is None else D
            grad_products = grad[:, begin : begin + products[0].numel()].reshape(products.shape)
            ends = (grad_products @ second.mT, first.mT @ grad_products)
            total = torch.zeros_like(start)
            for end, activations, layers in zip(ends, kept, self._branches, strict=True):
                masked = torch.ops.aten.threshold_backward(end.flatten(1), activations[-1], 0)
                found = mlp_backward(
                    masked, activations, layers, needs_input_grad=True, accumulate=accumulate
                )
                assert found is not None
                total += found
            if vector is not None:
                total[:, :D] += grad[:, :D]
            return cat_backward(total, accumulate)

        return widened(torch.cat(parts, 1), self._width), backward


_JOINS: dict[type[Interaction], Callable[[Any, DenseOptimizer, int], Join]] = {
    DotInteraction: _Dot,
    CatInteraction: _Cat,
    CrossInteraction: _Cross,
    ProjectionInteraction: _Projection,
}


def join_of(interaction: Interaction, optimizer: DenseOptimizer, width: int) -> Join:
    """An interaction as the step computes it.

    Args:
        interaction: Of the model.
        optimizer: Of its parameters, which are called `interaction.*`.
        width: K; the result is widened by zeros to it.
    """
    return _JOINS[type(interaction)](interaction, optimizer, width)


def pooled_of(lookup: Lookup, dtype: torch.dtype, num_samples: int) -> Tensor:
    """The pooled vectors of a batch, shape (B, F, D)."""
    pooled = lookup.pooled(dtype)
    if not pooled.shape[1]:  # a batch without sparse features does not know its B
        pooled = pooled.new_empty(num_samples, 0, pooled.shape[2])
    return pooled


def linears(mlp: nn.Module | None) -> list[int]:
    """Positions of the linear layers."""
    return [i for i, module in enumerate(layers_of(mlp)) if isinstance(module, nn.Linear)]


def widened(x: Tensor, width: int) -> Tensor:
    """With zero columns up to a width."""
    missing = width - x.shape[1]
    return F.pad(x, (0, missing)) if missing else x
