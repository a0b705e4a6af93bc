"""Loss and gradients of one batch: everything between the tables' rows and the optimizers.

Two ways to the same numbers. `FusedHead` writes the backward pass out, over a handful of kernels;
it knows linear layers with ReLU. `AutogradHead` takes any model. Both leave the parameters'
gradients in the dense optimizer's flat tensor and hand over the pooled vectors' as soon as it is
known, before the bottom MLP's backward pass.

Shapes: B batch, F sparse features, D embedding dim.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdlrm.batch import Batch
from fastdlrm.kernels.interaction import (
    cat_interaction,
    dot_interaction,
    dot_interaction_backward,
    lookup_dot_interaction,
    lookup_dot_interaction_backward,
)
from fastdlrm.kernels.logit_loss import LossRule, logit_loss
from fastdlrm.kernels.mlp import mlp_backward, mlp_forward
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.lookup import Lookup, RowSource
from fastdlrm.model.mlp import layers_of
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.loss import LossFunction

TakeGradient = Callable[[Tensor], None]
"""Called with the gradient of the pooled vectors, shape (B, F, D), or as `RowSource` asks."""


class Head(Protocol):
    """What the train step asks of a head."""

    def __call__(
        self,
        batch: Batch,
        lookup: Lookup,
        normalizer: float,
        take: TakeGradient,
        *,
        accumulate: bool,
    ) -> Tensor:
        """Forward and backward.

        Args:
            batch: On the model's device; at least one sample.
            lookup: Of the batch's ids; asked for the pooled vectors after the bottom MLP.
            normalizer: What the sum of losses is divided by.
            take: Gets the gradient of the pooled vectors.
            accumulate: Whether to add to the parameters' gradients instead of setting them.

        Returns:
            The loss, a scalar on the device, detached.
        """
        ...


class AutogradHead:
    """Any model, by torch's autograd.

    Args:
        model: In training mode.
        loss: Of logits against labels.
        optimizer: Of the model's dense parameters.
        dtype: bfloat16 runs matrix products in it (autocast).
    """

    def __init__(
        self, model: DLRM, loss: LossFunction, optimizer: DenseOptimizer, dtype: torch.dtype
    ) -> None:
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._dtype = dtype

    def __call__(
        self,
        batch: Batch,
        lookup: Lookup,
        normalizer: float,
        take: TakeGradient,
        *,
        accumulate: bool,
    ) -> Tensor:
        """See `Head`."""
        if not accumulate:
            self._optimizer.zero_grad()
        pooled = lookup.pooled(torch.float32).requires_grad_()
        device = batch.dense.device.type
        is_plain = self._dtype == torch.float32
        with nullcontext() if is_plain else torch.autocast(device, dtype=self._dtype):
            logits = self._model.head(batch.dense, pooled)
        loss = self._loss(logits.float(), batch.labels, normalizer)
        loss.backward()
        if pooled.grad is not None:
            take(pooled.grad)
        return loss.detach()


class FusedHead:
    """Linear layers with ReLU around an interaction, forward and backward written out.

    Args:
        model: `why_not_fused` is None for it.
        loss: Of logits against labels.
        optimizer: Of the model's dense parameters.
    """

    def __init__(self, model: DLRM, loss: LossRule, optimizer: DenseOptimizer) -> None:
        self._model = model
        self._loss = loss
        self._dtype = optimizer.compute.dtype
        layer = optimizer.layer
        *bottom, joint = [f"bottom_mlp.{i}" for i in _linears(model.bottom_mlp)] or [""]
        *top, last = [f"top_mlp.{i}" for i in _linears(model.top_mlp)]
        self._bottom = [layer(name, pad_outputs=True) for name in bottom]
        if joint:  # what meets the pooled vectors is as wide as they are
            self._bottom.append(layer(joint, pad_outputs=False))
        self._top = [layer(name, pad_outputs=True) for name in top]
        self._last = layer(last, pad_outputs=False, master=True)

    @torch.no_grad()
    def __call__(
        self,
        batch: Batch,
        lookup: Lookup,
        normalizer: float,
        take: TakeGradient,
        *,
        accumulate: bool,
    ) -> Tensor:
        """See `Head`."""
        bottom: list[Tensor] = []
        if self._bottom:
            width = self._bottom[0].weight.shape[1]
            bottom = mlp_forward(_widened(batch.dense, width, self._dtype), self._bottom)
        vector = bottom[-1] if bottom else None
        join = self._join(lookup, batch.num_samples)
        top = mlp_forward(join.forward(vector), self._top)
        end = logit_loss(
            top[-1],
            self._last,
            batch.labels,
            self._loss,
            normalizer=normalizer,
            relu=bool(self._top),
            accumulate=accumulate,
        )
        grad = mlp_backward(
            end.grad,
            top,
            self._top,
            needs_input_grad=True,
            accumulate=accumulate,
            grad_sum=end.grad_sum,
        )
        assert grad is not None
        grad_vector, grad_pooled = join.backward(grad, vector)
        take(grad_pooled)
        if grad_vector is not None:
            mlp_backward(
                grad_vector,
                bottom,
                self._bottom,
                needs_input_grad=False,
                accumulate=accumulate,
            )
        return end.loss

    def _join(self, lookup: Lookup, num_samples: int) -> "_Join":
        """How this batch's pooled vectors meet the bottom MLP's."""
        model = self._model
        width = (self._top[0] if self._top else self._last).weight.shape[1]
        is_dot = model.interaction == "dot"
        if is_dot and (source := lookup.source()) is not None:
            num_features = len(source.rows) // num_samples
            return _LookupDot(source, num_features, model.include_diagonal, width, self._dtype)
        pooled = lookup.pooled(self._dtype)
        if not pooled.shape[1]:  # a batch without sparse features does not know its B
            pooled = pooled.new_empty(num_samples, 0, pooled.shape[2])
        if is_dot:
            return _Dot(pooled, model.include_diagonal, width)
        return _Cat(pooled, width)


class _Join(Protocol):
    """An interaction of one batch, forward and backward."""

    def forward(self, vector: Tensor | None) -> Tensor:
        """The top MLP's input, shape (B, K), from the bottom MLP's result, shape (B, D)."""
        ...

    def backward(self, grad: Tensor, vector: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Gradients of the bottom MLP's result before its ReLU, and of the pooled vectors."""
        ...


@dataclass(frozen=True, slots=True)
class _Dot:
    pooled: Tensor
    include_diagonal: bool
    width: int

    def forward(self, vector: Tensor | None) -> Tensor:
        return dot_interaction(vector, self.pooled, self.include_diagonal, self.width)

    def backward(self, grad: Tensor, vector: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return dot_interaction_backward(grad, vector, self.pooled, self.include_diagonal, relu=True)


@dataclass(frozen=True, slots=True)
class _LookupDot:
    """Reads the rows within the kernels, twice, rather than keep them."""

    source: RowSource
    num_features: int
    include_diagonal: bool
    width: int
    dtype: torch.dtype

    def forward(self, vector: Tensor | None) -> Tensor:
        return lookup_dot_interaction(
            self.source.weight,
            self.source.rows,
            vector,
            self.num_features,
            self.include_diagonal,
            self.width,
            self.dtype,
        )

    def backward(self, grad: Tensor, vector: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return lookup_dot_interaction_backward(
            grad,
            self.source.weight,
            self.source.rows,
            vector,
            self.num_features,
            self.include_diagonal,
            relu=True,
            scatter=self.source.scatter,
        )


@dataclass(frozen=True, slots=True)
class _Cat:
    pooled: Tensor
    width: int

    def forward(self, vector: Tensor | None) -> Tensor:
        return _widened(cat_interaction(vector, self.pooled), self.width, self.pooled.dtype)

    def backward(self, grad: Tensor, vector: Tensor | None) -> tuple[Tensor | None, Tensor]:
        B, num_features, D = self.pooled.shape
        first = 0 if vector is None else D
        grad_pooled = grad[:, first : first + num_features * D].view(B, num_features, D)
        if vector is None:
            return None, grad_pooled
        return torch.ops.aten.threshold_backward(grad[:, :D], vector, 0), grad_pooled


def why_not_fused(model: DLRM) -> str | None:
    """What of a model `FusedHead` does not know; None if it knows it all."""
    for mlp in (model.bottom_mlp, model.top_mlp):
        for module in layers_of(mlp):
            if not isinstance(module, nn.Linear | nn.ReLU):
                return f"the model has {type(module).__name__} layers"
    return None


def _linears(mlp: nn.Module | None) -> list[int]:
    """Positions of the linear layers."""
    return [i for i, module in enumerate(layers_of(mlp)) if isinstance(module, nn.Linear)]


def _widened(x: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Cast, with zero columns up to a width."""
    missing = width - x.shape[1]
    return F.pad(x, (0, missing)).to(dtype) if missing else x.to(dtype)
