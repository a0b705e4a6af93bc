"""One optimizer step: forward, loss, backward, clip, update.

The tables stay outside autograd: the step takes the gradient of the pooled vectors and hands it to
the sparse optimizer, which touches only the batch's rows.
"""

from itertools import pairwise

import torch
from torch import Tensor

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.kernels.logit_loss import LossRule
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.config import TrainConfig
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.head import AutogradHead, FusedHead, Head, why_not_fused
from fastdlrm.train.loss import loss_function
from fastdlrm.train.schedule import learning_rate
from fastdlrm.train.sparse_optimizer import SparseOptimizer

WIDTH_MULTIPLE = 8
"""Widths of matrices: 16 bytes of bf16 or 32 of float32, what fast matrix products ask for."""


class TrainStep:
    """Model, loss and both optimizers as one callable.

    Attributes:
        model: In training mode.
        dense_optimizer: Of the MLPs.
        sparse_optimizer: Of the tables.
    """

    def __init__(self, model: DLRM, config: TrainConfig) -> None:
        self.model = model
        self._config = config
        self._device = model.tables.weight.device
        compute_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        unfused = why_not_fused(model)
        self.dense_optimizer = DenseOptimizer(
            config.dense_optimizer,
            model.dense_parameters(),
            compute_dtype=torch.float32 if unfused else compute_dtype,
            width_multiple=WIDTH_MULTIPLE,
        )
        self.sparse_optimizer = SparseOptimizer(config.sparse_optimizer, model.tables)
        self._head: Head
        if unfused:
            loss = loss_function(config.loss, config.class_weights)
            self._head = AutogradHead(model, loss, self.dense_optimizer, compute_dtype)
        else:
            rule = LossRule(config.loss, *config.class_weights)
            self._head = FusedHead(model, rule, self.dense_optimizer)

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Take one step.

        Args:
            batch: On the model's device.
            step: Optimizer steps done before this one; drives the schedule.

        Returns:
            The batch's mean loss, a scalar on the device, detached.
        """
        config, num_samples = self._config, batch.num_samples
        loss = torch.zeros((), device=self._device)
        for k, micro in enumerate(_micro_batches(batch, config.gradient_accumulation_steps)):

            def take(grad: Tensor, sparse: SparseBatch = micro.sparse) -> None:
                self.sparse_optimizer.accumulate(sparse, grad)

            loss += self._head(micro, num_samples, take, accumulate=k > 0)
        scale = self._clip() if config.gradient_clip_norm else 1.0
        schedule = config.schedule
        self.dense_optimizer.step(
            learning_rate(schedule, config.dense_optimizer.learning_rate, step), scale
        )
        self.sparse_optimizer.step(
            learning_rate(schedule, config.sparse_optimizer.learning_rate, step), scale
        )
        return loss

    def _clip(self) -> Tensor:
        """The factor that scales all gradients together to the largest norm allowed."""
        squares = self.sparse_optimizer.squared_norm() + self.dense_optimizer.squared_norm()
        return (self._config.gradient_clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)


def _micro_batches(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into `count` parts of nearly equal size, empty ones left out."""
    if count == 1:
        return [batch]
    edges = [batch.num_samples * i // count for i in range(count + 1)]
    return [batch.slice(a, b) for a, b in pairwise(edges) if a < b]
