"""Narrow tables' vectors projected within the train step, before an interaction joins them.

Shapes: B batch, F sparse features, D embedding dim, d columns of a table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdlrm.kernels.mlp import weight_gradient
from fastdlrm.model.interaction import widened
from fastdlrm.model.lookup import Lookup, RowSource
from fastdlrm.model.table_projection import TableProjection
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.join import Backward, Gradients, Join, pooled_of


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Vectors at hand, as a `Lookup`."""

    vectors: Tensor

    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        return self.vectors.to(dtype)

    def source(self) -> RowSource | None:
        """See `Lookup`."""
        return None


class ProjectedJoin:
    """A join of projected vectors; see `Join`.

    Args:
        projection: Of the model.
        optimizer: Of its parameters, which are called `table_projection.*`.
        join: Of the vectors that are projected.
    """

    def __init__(self, projection: TableProjection, optimizer: DenseOptimizer, join: Join) -> None:
        self._projection = projection
        self._dtype = optimizer.compute.dtype
        self._join = join
        self._weights, self._grads = [], []
        for k, weight in enumerate(projection.weights):
            value, grad = optimizer.tensors(f"table_projection.weights.{k}")
            self._weights.append(value[: len(weight)])
            self._grads.append(grad[: len(weight)])

    def __call__(
        self, lookup: Lookup, vector: Tensor | None, num_samples: int
    ) -> tuple[Tensor, Backward]:
        """See `Join`."""
        pooled = pooled_of(lookup, self._dtype, num_samples)
        projected = self._projection.apply_by(pooled, self._product)
        joined, inner = self._join(_Vectors(projected), vector, num_samples)

        def backward(grad: Tensor, accumulate: bool) -> Gradients:
            grad_vector, grad_projected = inner(grad, accumulate)
            return grad_vector, self._backward(grad_projected, pooled, accumulate)

        return joined, backward

    def _product(self, x: Tensor, k: int) -> Tensor:
        """Vectors of a narrow table, shape (B, d), projected: shape (B, D)."""
        weight = self._weights[k]
        return widened(x, weight.shape[1]) @ weight.t()

    def _backward(self, grad: Tensor, pooled: Tensor, accumulate: bool) -> Tensor:
        """Gradient of the pooled vectors; beyond d, where no table has numbers, it is anything.

        Args:
            grad: Of the projected vectors, shape (B, F, D).
            pooled: Shape (B, F, D).
            accumulate: Whether to add to the matrices' gradients instead of setting them.
        """
        of_pooled, seen = grad.clone(), set[int]()
        for feature, k, dim in self._projection.features:
            own, weight_grad = grad[:, feature], self._grads[k]
            of_pooled[:, feature, :dim] = (own @ self._weights[k])[:, :dim]
            x = widened(pooled[:, feature, :dim], weight_grad.shape[1])
            weight_gradient(weight_grad, own, x, accumulate or k in seen)
            seen.add(k)
        return of_pooled
