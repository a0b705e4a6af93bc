"""Loss and gradients of one batch: everything between the tables' rows and the optimizers.

Two ways to the same numbers. `FusedHead` writes the backward pass out, over a handful of kernels;
it knows linear layers with ReLU. `AutogradHead` takes any model. Both leave the parameters'
gradients in the dense optimizer's flat tensor and hand over the pooled vectors' as soon as it is
known, before the bottom MLP's backward pass.

Shapes: B batch, F sparse features, D embedding dim.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from fastdlrm.batch import Batch
from fastdlrm.kernels.logit_loss import LossRule, logit_loss
from fastdlrm.kernels.mlp import mlp_backward, mlp_forward
from fastdlrm.model.deep import DeepInteraction
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.interaction import widened
from fastdlrm.model.lookup import Lookup
from fastdlrm.model.mlp import layers_of
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.join import Within, join_of, linears
from fastdlrm.train.loss import LossFunction
from fastdlrm.train.projected_join import ProjectedJoin

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

    The bottom MLP's last layer may be without ReLU.

    Args:
        model: `why_not_fused` is None for it.
        loss: Of logits against labels.
        optimizer: Of the model's dense parameters.
    """

    def __init__(self, model: DLRM, loss: LossRule, optimizer: DenseOptimizer) -> None:
        self._loss = loss
        self._dtype = optimizer.compute.dtype
        layer, ends = optimizer.layer, layers_of(model.bottom_mlp)
        *bottom, joint = [f"bottom_mlp.{i}" for i in linears(model.bottom_mlp)] or [""]
        *top, last = [f"top_mlp.{i}" for i in linears(model.top_mlp)]
        self._bottom = [layer(name, pad_outputs=True) for name in bottom]
        if joint:  # what meets the pooled vectors is as wide as they are
            self._bottom.append(layer(joint, pad_outputs=False))
        self._top = [layer(name, pad_outputs=True) for name in top]
        self._last = layer(last, pad_outputs=False, master=True)
        width = (self._top[0] if self._top else self._last).weight.shape[1]
        self._bottom_relu = bool(ends) and isinstance(ends[-1], nn.ReLU)
        within = Within(optimizer, "interaction.", self._bottom_relu)
        self._join = join_of(model.interaction, within, width)
        if model.table_projection is not None:
            self._join = ProjectedJoin(model.table_projection, optimizer, self._join)

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
            dense = widened(batch.dense, width).to(self._dtype)
            bottom = mlp_forward(dense, self._bottom, relu_last=self._bottom_relu)
        vector = bottom[-1] if bottom else None
        joined, backward = self._join(lookup, vector, batch.num_samples)
        # a logit among the joined is float32, which hidden layers do not take
        top = mlp_forward(joined.to(self._dtype) if self._top else joined, self._top)
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
        grad_vector, grad_pooled = backward(grad, accumulate)
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


def why_not_fused(model: DLRM) -> str | None:
    """What of a model `FusedHead` does not know; None if it knows it all."""
    join = model.interaction
    deep_mlp = join.deep_mlp if isinstance(join, DeepInteraction) else None
    for mlp in (model.bottom_mlp, model.top_mlp, deep_mlp):
        for module in layers_of(mlp):
            if not isinstance(module, nn.Linear | nn.ReLU):
                return f"the model has {type(module).__name__} layers"
    return None
