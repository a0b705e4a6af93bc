"""One optimizer step: forward, loss, backward, clip, update.

The tables stay outside autograd: the step takes the gradient of the pooled vectors and hands it to
the sparse optimizer, which touches only the batch's rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.data.order import rank_slice
from fastdlrm.kernels.logit_loss import LossRule
from fastdlrm.kernels.step_scalars import with_scale
from fastdlrm.model.compressed import CompressedTables
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.lookup import Lookup, Tables
from fastdlrm.model.mixed_tables import MixedTables
from fastdlrm.parallel.footprint import exchange_bytes
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.world import ALONE, Pending, World
from fastdlrm.train.compressed_optimizer import CompressedOptimizer
from fastdlrm.train.config import TrainConfig
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.graph import StepGraph
from fastdlrm.train.head import AutogradHead, FusedHead, Head, TakeGradient, why_not_fused
from fastdlrm.train.loss import loss_function
from fastdlrm.train.mixed_optimizer import MixedSparseOptimizer
from fastdlrm.train.schedule import learning_rate
from fastdlrm.train.sharded_optimizer import ShardedSparseOptimizer
from fastdlrm.train.sparse_optimizer import SparseOptimizer

WIDTH_MULTIPLE = 8
"""Widths of matrices: 16 bytes of bf16 or 32 of float32, what fast matrix products ask for."""


class TrainStep:
    """Model, loss and both optimizers as one callable.

    Attributes:
        model: In training mode.
        dense_optimizer: Of all parameters but the tables'.
        sparse_optimizer: Of the tables.
        why_no_graph: Why steps are not replayed from a captured CUDA graph; empty if they are.
    """

    def __init__(self, model: DLRM, config: TrainConfig, world: World = ALONE) -> None:
        """Take over the model's parameters.

        Args:
            model: In training mode; its tables are `ShardedTables` where there are other ranks.
            config: The [train] section.
            world: This rank and the others.
        """
        self.model = model
        self._world = world
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
        self.sparse_optimizer = _sparse_optimizer(model.tables, config, world)
        # What of the gradient is known before the bottom MLP's backward pass, and the rest.
        self._early = self.dense_optimizer.gradient_of(
            "table_projection.", "interaction.", "top_mlp."
        )
        self._late = self.dense_optimizer.gradient_of("bottom_mlp.")
        self._head: Head
        if unfused:
            loss = loss_function(config.loss, config.class_weights)
            self._head = AutogradHead(model, loss, self.dense_optimizer, compute_dtype)
        else:
            rule = LossRule(config.loss, *config.class_weights)
            self._head = FusedHead(model, rule, self.dense_optimizer)
        self.why_no_graph = (
            why_no_graph(config, self._device, self._world.size)
            or self.sparse_optimizer.why_no_graph
        )
        local_batch_size = config.global_batch_size // self._world.size
        # cutting bags, or exchanging them, takes sizes that the host must know
        takes_bags = config.gradient_accumulation_steps == 1 and isinstance(
            model.tables, EmbeddingTables
        )
        self._graph = None
        if not self.why_no_graph:
            self._graph = StepGraph(self._run, local_batch_size, takes_bags=takes_bags)

    def __call__(self, batch: Batch, step: int, num_samples: int = 0) -> Tensor:
        """Take one step.

        Args:
            batch: This rank's samples, anywhere; page-locked is fastest on a GPU.
            step: Optimizer steps done before this one; drives the schedule.
            num_samples: Of the global batch, which the ranks share as `rank_slice` says; 0: this is
                the only rank.

        Returns:
            This rank's part of the batch's mean loss, a scalar on the device, detached: the sum
            over the ranks is the mean.
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
        counts = self._counts(num_samples or batch.num_samples)
        is_full = sum(counts) == config.global_batch_size
        if self._graph is not None and is_full and self._graph.takes(batch):
            return self._graph(batch, now)
        scalars = (now[0].tensor(self._device), now[1].tensor(self._device))
        return self._run(batch.to(self._device, non_blocking=True), *scalars, counts=counts)

    def close(self) -> None:
        """Free a captured graph: as long as it holds collectives the ranks cannot part."""
        if self._graph is not None:
            self._graph.release()

    def _counts(self, num_samples: int) -> list[int]:
        """Samples of each rank."""
        size = self._world.size
        slices = (rank_slice(num_samples, rank, size) for rank in range(size))
        return [stop - start for start, stop in slices]

    def _run(
        self,
        batch: Batch,
        dense_scalars: Tensor,
        sparse_scalars: Tensor,
        counts: Sequence[int] = (),
    ) -> Tensor:
        """The part of a step that runs on the device, in a captured graph as well.

        On a GPU the ids are sorted beside the forward pass, and the tables are updated and the top
        MLP's gradients summed over the ranks beside the bottom MLP's backward pass.
        """
        config = self._config
        counts = counts or [batch.num_samples] * self._world.size
        is_clipped = config.gradient_clip_norm > 0
        parts = _micro_batches(counts, config.gradient_accumulation_steps)
        is_whole = len(parts) == 1 and not is_clipped
        sums: list[Pending] = []
        losses = []
        for k, part in enumerate(parts):
            own = part[self._world.rank]
            micro = batch if len(parts) == 1 else batch.slice(own.start, own.stop)
            lookup = self.sparse_optimizer.look_up(
                micro.sparse, [len(samples) for samples in part], is_whole=is_whole
            )

            def take(grad: Tensor, k: int = k, lookup: Any = lookup) -> None:
                self.sparse_optimizer.take(lookup, grad, sparse_scalars if is_whole else None)
                if k == len(parts) - 1:
                    sums.append(self._world.all_reduce(self._early))
                    self.sparse_optimizer.reduce()

            losses.append(self._forward_backward(micro, lookup, sum(counts), take, k > 0))
        if not sums:  # autograd hands over no gradient where there are no sparse features
            sums.append(self._world.all_reduce(self._early))
        sums.append(self._world.all_reduce(self._late))
        for pending in sums:
            pending.wait()
        if is_clipped:
            scale = self._clip()
            dense_scalars, sparse_scalars = (
                with_scale(scalars, scale) for scalars in (dense_scalars, sparse_scalars)
            )
        self.dense_optimizer.apply(dense_scalars)
        self.sparse_optimizer.apply(sparse_scalars)  # nothing is left of a whole batch
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _forward_backward(
        self,
        batch: Batch,
        lookup: Lookup,
        num_samples: int,
        take: TakeGradient,
        accumulate: bool,
    ) -> Tensor:
        """The head's part; a rank without samples takes part in the exchange all the same."""
        if batch.num_samples:
            return self._head(batch, lookup, num_samples, take, accumulate=accumulate)
        if not accumulate:
            self.dense_optimizer.zero_grad()
        take(torch.zeros_like(lookup.pooled(torch.float32)))
        return torch.zeros((), device=self._device)

    def _clip(self) -> Tensor:
        """The factor that scales all gradients together to the largest norm allowed."""
        squares = self.sparse_optimizer.squared_norm() + self.dense_optimizer.squared_norm()
        return (self._config.gradient_clip_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)


def _sparse_optimizer(
    tables: Tables, config: TrainConfig, world: World
) -> SparseOptimizer | MixedSparseOptimizer | ShardedSparseOptimizer | CompressedOptimizer:
    """What looks up and trains tables of this kind."""
    if isinstance(tables, CompressedTables):
        inner = _sparse_optimizer(tables.tables, config, world)
        assert not isinstance(inner, CompressedOptimizer)
        return CompressedOptimizer(tables.compression, inner, world)
    if isinstance(tables, ShardedTables):
        return ShardedSparseOptimizer(config.sparse_optimizer, tables, exchange_dtype(config))
    if isinstance(tables, MixedTables):
        return MixedSparseOptimizer(config.sparse_optimizer, tables)
    assert isinstance(tables, EmbeddingTables)
    return SparseOptimizer(config.sparse_optimizer, tables)


def _micro_batches(counts: Sequence[int], num_parts: int) -> list[list[range]]:
    """Cut every rank's samples into parts of nearly equal size: by part, then by rank.

    Parts in which no rank has a sample are left out.
    """
    parts = [
        [range(count * i // num_parts, count * (i + 1) // num_parts) for count in counts]
        for i in range(num_parts)
    ]
    return [part for part in parts if any(part)]


def exchange_dtype(config: TrainConfig) -> torch.dtype:
    """Of pooled vectors and their gradients between ranks."""
    is_half = exchange_bytes(config.exchange_dtype, config.precision) == 2
    return torch.bfloat16 if is_half else torch.float32


def why_no_graph(config: TrainConfig, device: torch.device, world_size: int = 1) -> str:
    """What of a config keeps steps from being captured as a CUDA graph; empty if nothing does."""
    if device.type != "cuda":
        return "steps run on the CPU"
    if not config.use_cuda_graph:
        return "train.use_cuda_graph is false"
    if config.global_batch_size % world_size:
        return f"train.global_batch_size is no multiple of the {world_size} ranks"
    if config.gradient_clip_norm:
        return "train.gradient_clip_norm needs the norm of all rows' gradients before the update"
    return ""
