"""The optimizer of tables of several widths in one process: one `SparseOptimizer` a width.

Shapes: B batch, F sparse features, D embedding dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.row_update import UpdateRule
from fastdlrm.kernels.step_scalars import StepScalars
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.lookup import RowSource
from fastdlrm.model.mixed_tables import MixedTables
from fastdlrm.train.config import SparseOptimizerConfig
from fastdlrm.train.sparse_optimizer import SparseOptimizer, StackLookup


@dataclass(frozen=True, slots=True)
class MixedLookup:
    """A batch looked up in stacks of several widths.

    Attributes:
        tables: Looked up in.
        lookups: Of each stack; None where it has no features.
        num_samples: B.
    """

    tables: MixedTables[EmbeddingTables]
    lookups: list[StackLookup | None]
    num_samples: int

    @torch.no_grad()
    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        parts = [None if lookup is None else lookup.pooled(dtype) for lookup in self.lookups]
        return self.tables.widened(parts, self.num_samples, dtype)

    def source(self) -> RowSource | None:
        """See `Lookup`: rows of several widths are no rows of one tensor."""
        return None


class MixedSparseOptimizer:
    """A step is that of `SparseOptimizer`, on every stack."""

    def __init__(self, config: SparseOptimizerConfig, tables: MixedTables[EmbeddingTables]) -> None:
        """Make the state, on the tables' device.

        Args:
            config: Name and numbers.
            tables: What to train; they stay on their device from here on.
        """
        self._rule = UpdateRule(config.name, config.eps, config.l2)
        self._tables = tables
        self._stacks = [SparseOptimizer(config, stack) for stack in tables.stacks]
        self._num_steps = torch.zeros((), dtype=torch.int64)

    @property
    def why_no_graph(self) -> str:
        """What keeps a step from being captured as a CUDA graph; empty if nothing does."""
        return self._stacks[0].why_no_graph

    def look_up(
        self, sparse: SparseBatch, counts: Sequence[int] = (), *, is_whole: bool
    ) -> MixedLookup:
        """Look up a micro-batch; see `SparseOptimizer.look_up`."""
        lookups = [
            optimizer.look_up(sparse.of_features(features), is_whole=is_whole)
            if len(features)
            else None
            for optimizer, (_, features) in zip(self._stacks, self._tables.parts(), strict=True)
        ]
        return MixedLookup(self._tables, lookups, sparse.num_samples)

    def take(self, lookup: MixedLookup, grad: Tensor, scalars: Tensor | None) -> None:
        """Add a micro-batch's gradient; see `SparseOptimizer.take`."""
        parts = zip(self._stacks, lookup.lookups, self._tables.narrowed(grad), strict=True)
        for optimizer, part, narrow in parts:
            if part is not None:
                optimizer.take(part, narrow, scalars)

    def reduce(self) -> None:
        """Nothing is to be summed over ranks."""

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the accumulated gradient, without l2: a scalar on the device."""
        device = self._tables.stacks[0].feature_starts.device
        norms = [optimizer.squared_norm().to(device) for optimizer in self._stacks]
        return torch.stack(norms).sum()

    def next_scalars(self, learning_rate: float) -> StepScalars:
        """Count a step and give its numbers; `apply` does it."""
        self._num_steps += 1
        return StepScalars.of_step(learning_rate, int(self._num_steps), self._rule.betas)

    def apply(self, scalars: Tensor) -> None:
        """Update what `take` has not updated yet.

        Args:
            scalars: `next_scalars` as a tensor.
        """
        for optimizer in self._stacks:
            optimizer.apply(scalars)

    def state_tensors(self) -> dict[str, Tensor]:
        """Live tensors by name, each table on its own; copying into one changes the state."""
        named: dict[str, Tensor] = {}
        for optimizer in self._stacks:
            named |= optimizer.state_tensors()
        return {**named, "num_steps": self._num_steps}
