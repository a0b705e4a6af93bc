"""One optimizer step: forward, loss, backward, clip, update.

The tables stay outside autograd: the step takes the gradient of the pooled vectors and hands it to
the sparse optimizer, which touches only the batch's rows.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.kernels.logit_loss import LossRule
from fastdlrm.kernels.step_scalars import with_scale
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.config import TrainConfig
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.graph import StepGraph
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
        why_no_graph: Why steps are not replayed from a captured CUDA graph; empty if they are.
    """

    def __init__(self, model: DLRM, config: TrainConfig) -> None:
        self.model = model
        self._config = config
        self._device = next(iter(model.dense_parameters().values())).device
        if self._device.type == "cuda":
            torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
        compute_dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        unfused = why_not_fused(model)
        self.dense_optimizer = DenseOptimizer(
            config.dense_optimizer,
            model.dense_parameters(),
            compute_dtype=torch.float32 if unfused else compute_dtype,
            width_multiple=1 if unfused else WIDTH_MULTIPLE,
        )
        self.sparse_optimizer = SparseOptimizer(config.sparse_optimizer, model.tables)
        self._head: Head
        if unfused:
            loss = loss_function(config.loss, config.class_weights)
            self._head = AutogradHead(model, loss, self.dense_optimizer, compute_dtype)
        else:
            rule = LossRule(config.loss, *config.class_weights)
            self._head = FusedHead(model, rule, self.dense_optimizer)
        self.why_no_graph = why_no_graph(config, self._device)
        self._graph = None if self.why_no_graph else StepGraph(self._run, config.global_batch_size)

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Take one step.

        Args:
            batch: Anywhere; page-locked is fastest on a GPU.
            step: Optimizer steps done before this one; drives the schedule.

        Returns:
            The batch's mean loss, a scalar on the device, detached.
        """
        config = self._config
        rates = [
            learning_rate(config.schedule, optimizer.learning_rate, step)
            for optimizer in (config.dense_optimizer, config.sparse_optimizer)
        ]
        now = (
            self.dense_optimizer.next_scalars(rates[0]),
            self.sparse_optimizer.next_scalars(rates[1]),
        )
        if self._graph is not None and self._graph.takes(batch):
            return self._graph(batch, now)
        scalars = [scalars.tensor(self._device) for scalars in now]
        return self._run(batch.to(self._device, non_blocking=True), *scalars)

    def _run(self, batch: Batch, dense_scalars: Tensor, sparse_scalars: Tensor) -> Tensor:
        """The part of a step that runs on the device, in a captured graph as well.

        On a GPU the ids are sorted beside the forward pass, and the tables are updated beside the
        bottom MLP's backward pass.
        """
        config, num_samples = self._config, batch.num_samples
        is_clipped = config.gradient_clip_norm > 0
        micro_batches = _micro_batches(batch, config.gradient_accumulation_steps)
        is_whole = len(micro_batches) == 1 and not is_clipped
        losses = []
        for k, micro in enumerate(micro_batches):
            lookup = self.sparse_optimizer.look_up(micro.sparse, is_whole=is_whole)
            take = partial(
                self.sparse_optimizer.take, lookup, scalars=sparse_scalars if is_whole else None
            )
            losses.append(self._head(micro, lookup, num_samples, take, accumulate=k > 0))
        if is_clipped:
            scale = self._clip()
            dense_scalars, sparse_scalars = (
                with_scale(scalars, scale) for scalars in (dense_scalars, sparse_scalars)
            )
        self.dense_optimizer.apply(dense_scalars)
        self.sparse_optimizer.apply(sparse_scalars)  # nothing is left of a whole batch
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

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


def why_no_graph(config: TrainConfig, device: torch.device) -> str:
    """What of a config keeps steps from being captured as a CUDA graph; empty if nothing does."""
    if device.type != "cuda":
        return "steps run on the CPU"
    if not config.use_cuda_graph:
        return "train.use_cuda_graph is false"
    if config.gradient_clip_norm:
        return "train.gradient_clip_norm needs the norm of all rows' gradients before the update"
    return ""
