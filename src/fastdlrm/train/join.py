"""An interaction within the train step, forward and backward, over the dense optimizer's tensors.

Shapes: B batch, F sparse features, D embedding dim, K inputs of the top MLP, padding included.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastdlrm.kernels.cross import CrossLayer, cross_backward, cross_forward
from fastdlrm.kernels.cross_vector import CrossVectors, cross_vector, cross_vector_backward
from fastdlrm.kernels.factorization import factorization, factorization_backward
from fastdlrm.kernels.interaction import (
    cat_interaction,
    dot_interaction,
    dot_interaction_backward,
    lookup_dot_interaction,
    lookup_dot_interaction_backward,
)
from fastdlrm.kernels.mlp import Layer, mlp_backward, mlp_forward
from fastdlrm.model.cross import CrossInteraction, CrossVectorInteraction
from fastdlrm.model.deep import DeepInteraction
from fastdlrm.model.factorization import FactorizationInteraction
from fastdlrm.model.interaction import (
    CatInteraction,
    DotInteraction,
    Interaction,
    ProjectionInteraction,
    widened,
)
from fastdlrm.model.lookup import Lookup, RowSource
from fastdlrm.model.mlp import layers_of
from fastdlrm.train.dense_optimizer import DenseOptimizer

Gradients = tuple[Tensor | None, Tensor]
"""Of the bottom MLP's result before its ReLU, if it ends in one, shape (B, D), and of the pooled
vectors, as `Lookup` asks."""

Backward = Callable[[Tensor, bool], Gradients]
"""The gradient of the result, shape (B, K), and whether to add to the parameters' gradients."""


class Within(NamedTuple):
    """What an interaction is part of.

    Attributes:
        optimizer: Of its parameters.
        prefix: Of their names.
        relu: Whether the bottom MLP ends in ReLU.
    """

    optimizer: DenseOptimizer
    prefix: str
    relu: bool

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        return self.optimizer.compute.dtype

    def layers(self, mlp: nn.Module, name: str) -> list[Layer]:
        """An MLP whose result is not padded."""
        *hidden, last = [f"{self.prefix}{name}.{index}" for index in linears(mlp)]
        layers = [self.optimizer.layer(layer, pad_outputs=True) for layer in hidden]
        return [*layers, self.optimizer.layer(last, pad_outputs=False)]

    def before_relu(self, grad: Tensor, vector: Tensor) -> Tensor:
        """The gradient of the bottom MLP's result, as `Gradients` has it."""
        return torch.ops.aten.threshold_backward(grad, vector, 0) if self.relu else grad


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
    def __init__(self, interaction: DotInteraction, within: Within, width: int) -> None:
        self._include_diagonal = interaction.include_diagonal
        self._dtype, self._relu = within.dtype, within.relu
        self._width = width

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        diagonal = self._include_diagonal
        if (source := lookup.source()) is not None:
            return self._of_rows(source, vector, len(source.rows) // num_samples)
        pooled = pooled_of(lookup, self._dtype, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            return dot_interaction_backward(grad, vector, pooled, diagonal, relu=self._relu)

        return dot_interaction(vector, pooled, diagonal, self._width), backward

    def _of_rows(
        self, source: RowSource, vector: Tensor | None, num_features: int
    ) -> tuple[Tensor, Backward]:
        """Reads the rows within the kernels, twice, rather than keep them."""
        weight, rows, scatter = source
        of = (weight, rows, vector, num_features, self._include_diagonal)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            return lookup_dot_interaction_backward(grad, *of, relu=self._relu, scatter=scatter)

        return lookup_dot_interaction(*of, self._width, self._dtype), backward


class _Cat:
    def __init__(self, interaction: Interaction, within: Within, width: int) -> None:
        self._within = within
        self._width = width

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        pooled = pooled_of(lookup, self._within.dtype, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            B, num_features, D = pooled.shape
            first = 0 if vector is None else D
            grad_pooled = grad[:, first : first + num_features * D].view(B, num_features, D)
            if vector is None:
                return None, grad_pooled
            return self._within.before_relu(grad[:, :D], vector), grad_pooled

        return widened(cat_interaction(vector, pooled), self._width), backward


class _Cross:
    def __init__(self, interaction: CrossInteraction, within: Within, width: int) -> None:
        self._cat, self._relu = _Cat(interaction, within, width), within.relu
        self._shape = interaction.vectors.num_vectors, interaction.vectors.dim
        self._layers = []
        for index in range(len(interaction.layers)):
            names = (f"{within.prefix}layers.{index}.{name}" for name in ("v", "u", "bias"))
            values, grads = zip(*(within.optimizer.tensors(name) for name in names), strict=True)
            self._layers.append(CrossLayer(*values, *grads))

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        start, _ = self._cat(lookup, vector, num_samples)
        crossed = cross_forward(start, self._layers)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            is_cut = vector is not None and self._relu
            grad_vector, grads = cross_backward(
                grad, crossed, self._layers, self._shape, has_dense=is_cut, accumulate=accumulate
            )
            if vector is None:
                return None, grads
            return (grad_vector, grads) if is_cut else (grads[:, 0], grads[:, 1:])

        return crossed.inputs[-1], backward


class _CrossVector:
    def __init__(self, interaction: CrossVectorInteraction, within: Within, width: int) -> None:
        self._cat = _Cat(interaction, within, width)
        n = len(interaction.weight)  # more layers of zeros, as padding, would learn
        names = (f"{within.prefix}{name}" for name in ("weight", "bias"))
        pairs = ((x[:n] for x in within.optimizer.tensors(name)) for name in names)
        values, grads = zip(*pairs, strict=True)
        self._layers = CrossVectors(*values, *grads)

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        start, cat_backward = self._cat(lookup, vector, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            total = cross_vector_backward(grad, start, self._layers, accumulate)
            return cat_backward(total, accumulate)

        return cross_vector(start, self._layers.weight, self._layers.bias), backward


class _Factorization:
    def __init__(self, interaction: FactorizationInteraction, within: Within, width: int) -> None:
        self._within, self._width = within, width

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        pooled = pooled_of(lookup, self._within.dtype, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            grad_vector, grad_pooled = factorization_backward(grad[:, :1], vector, pooled)
            if vector is None or grad_vector is None:
                return None, grad_pooled
            return self._within.before_relu(grad_vector, vector), grad_pooled

        return widened(factorization(vector, pooled), self._width), backward


class _Projection:
    def __init__(self, interaction: ProjectionInteraction, within: Within, width: int) -> None:
        self._dim = interaction.vectors.dim
        cat_width = within.optimizer.padded(interaction.vectors.width)
        self._cat = _Cat(interaction, within, cat_width)
        self._width = width
        self._branches = [
            within.layers(interaction.branch1, "branch1"),
            within.layers(interaction.branch2, "branch2"),
        ]

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
                total += _relu_mlp_backward(end.flatten(1), activations, layers, accumulate)
            if vector is not None:
                total[:, :D] += grad[:, :D]
            return cat_backward(total, accumulate)

        return widened(torch.cat(parts, 1), self._width), backward


class _Deep:
    def __init__(self, interaction: DeepInteraction, within: Within, width: int) -> None:
        optimizer, beside = within.optimizer, interaction.beside
        self._within, self._width = within, width
        self._cat = _Cat(interaction, within, optimizer.padded(interaction.vectors.width))
        self._layers = within.layers(interaction.deep_mlp, "deep_mlp")
        self._split, self._padded = beside.width, optimizer.padded(beside.width)
        inner = within._replace(prefix=f"{within.prefix}beside.")
        self._beside = join_of(beside, inner, self._padded)

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        at = self._split
        read = _Read(pooled_of(lookup, self._within.dtype, num_samples))
        start, cat_backward = self._cat(read, vector, num_samples)
        kept = mlp_forward(start, self._layers)
        joined, beside_backward = self._beside(read, vector, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            end = grad[:, at : at + kept[-1].shape[1]].to(start.dtype)
            total = _relu_mlp_backward(end, kept, self._layers, accumulate)
            of_vector, of_pooled = cat_backward(total, accumulate)
            others = widened(grad[:, :at], self._padded).contiguous()
            more_of_vector, more_of_pooled = beside_backward(others, accumulate)
            if of_vector is not None and more_of_vector is not None:
                of_vector = of_vector + more_of_vector
            return of_vector, of_pooled + more_of_pooled

        return widened(torch.cat([joined[:, :at], kept[-1]], 1), self._width), backward


class _Read(NamedTuple):
    """A lookup whose vectors have been read, for all who ask for them."""

    vectors: Tensor

    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        return self.vectors.to(dtype)

    def source(self) -> RowSource | None:
        """See `Lookup`."""
        return None


_JOINS: dict[type[Interaction], Callable[[Any, Within, int], Join]] = {
    DotInteraction: _Dot,
    CatInteraction: _Cat,
    CrossInteraction: _Cross,
    CrossVectorInteraction: _CrossVector,
    FactorizationInteraction: _Factorization,
    ProjectionInteraction: _Projection,
    DeepInteraction: _Deep,
}


def join_of(interaction: Interaction, within: Within, width: int) -> Join:
    """An interaction as the step computes it.

    Args:
        interaction: Of the model.
        within: What it is part of.
        width: K; the result is widened by zeros to it.
    """
    return _JOINS[type(interaction)](interaction, within, width)


def _relu_mlp_backward(
    grad: Tensor, activations: list[Tensor], layers: list[Layer], accumulate: bool
) -> Tensor:
    """The gradient of the input of an MLP that ends in ReLU, by that of its result."""
    masked = torch.ops.aten.threshold_backward(grad, activations[-1], 0)
    found = mlp_backward(masked, activations, layers, needs_input_grad=True, accumulate=accumulate)
    assert found is not None
    return found


def pooled_of(lookup: Lookup, dtype: torch.dtype, num_samples: int) -> Tensor:
    """The pooled vectors of a batch, shape (B, F, D)."""
    pooled = lookup.pooled(dtype)
    if not pooled.shape[1]:  # a batch without sparse features does not know its B
        pooled = pooled.new_empty(num_samples, 0, pooled.shape[2])
    return pooled


def linears(mlp: nn.Module | None) -> list[int]:
    """Positions of the linear layers."""
    return [i for i, module in enumerate(layers_of(mlp)) if isinstance(module, nn.Linear)]
