"""One optimizer step: forward, loss, backward, clip, update.

The tables stay outside autograd: the step takes the gradient of the pooled vectors and hands it to
the sparse optimizer, which touches only the batch's rows.
"""

from itertools import pairwise

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.config import TrainConfig
from fastdlrm.train.loss import loss_function
from fastdlrm.train.optim import SparseOptimizer, build_dense_optimizer
from fastdlrm.train.schedule import learning_rate


class TrainStep:
    """Model, loss and both optimizers as one callable.

    Attributes:
        model: In training mode.
        dense_optimizer: Of the MLPs.
        sparse_optimizer: Of the tables.
    """

    def __init__(self, model: DLRM, config: TrainConfig) -> None:
        self.model = model
        self.dense_optimizer = build_dense_optimizer(
            config.dense_optimizer, model.dense_parameters()
        )
        self.sparse_optimizer = SparseOptimizer(config.sparse_optimizer, model.tables)
        self._config = config
        self._loss = loss_function(config.loss, config.class_weights)

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Take one step.

        Args:
            batch: On the model's device.
            step: Optimizer steps done before this one; drives the schedule.

        Returns:
            The batch's mean loss, a scalar on the device, detached.
        """
        self.dense_optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=batch.labels.device)
        for micro in _micro_batches(batch, self._config.gradient_accumulation_steps):
            loss += self._backward(micro, batch.num_samples)
        config = self._config
        for group in self.dense_optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, config.dense_optimizer.learning_rate, step)
        clip = self._clip() if config.gradient_clip_norm else 1.0
        self.dense_optimizer.step()
        self.sparse_optimizer.step(
            learning_rate(config.schedule, config.sparse_optimizer.learning_rate, step), clip
        )
        return loss

    def _backward(self, batch: Batch, num_samples: int) -> Tensor:
        """Add a micro-batch's share of the gradients; return its share of the mean loss."""
        with torch.no_grad():
            pooled = self.model.tables(batch.sparse)
        pooled.requires_grad_()
        logits = self.model.head(batch.dense, pooled)
        loss = self._loss(logits, batch.labels, num_samples)
        loss.backward()
        if pooled.grad is not None:
            self.sparse_optimizer.accumulate(batch.sparse, pooled.grad)
        return loss.detach()

    def _clip(self) -> float | Tensor:
        """Scale all gradients to the largest norm allowed; returns the factor for the tables."""
        grads = [p.grad for p in self.model.dense_parameters() if p.grad is not None]
        squares = self.sparse_optimizer.squared_norm()
        squares = squares + sum(g.square().sum() for g in grads)
        scale = (self._config.gradient_clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)
        return scale


def _micro_batches(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into `count` parts of nearly equal size, empty ones left out."""
    if count == 1:
        return [batch]
    edges = [batch.num_samples * i // count for i in range(count + 1)]
    return [batch.slice(a, b) for a, b in pairwise(edges) if a < b]
