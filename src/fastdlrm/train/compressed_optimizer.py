"""The optimizer of compressed tables: another one's, of the tables in memory.

Shapes: B batch, C columns of bags in the lowered batch, F sparse features, P parts of them, D
embedding dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.step_scalars import StepScalars
from fastdlrm.model.compressed import Compression, Lowered
from fastdlrm.model.lookup import Lookup, RowSource
from fastdlrm.parallel.world import World
from fastdlrm.train.mixed_optimizer import MixedSparseOptimizer
from fastdlrm.train.sharded_optimizer import ShardedSparseOptimizer
from fastdlrm.train.sparse_optimizer import SparseOptimizer


class CompressedLookup:
    """A batch looked up in compressed tables.

    Args:
        compression: Of the tables.
        lowered: The batch as the tables in memory were asked for it.
        inner: Their lookup.
    """

    def __init__(self, compression: Compression, lowered: Lowered, inner: Any) -> None:
        self.inner = inner
        self._compression = compression
        self._lowered = lowered
        self._vectors: Tensor | None = None

    @torch.no_grad()
    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        return self._compression.combine(self._looked_up(), self._lowered).to(dtype)

    def source(self) -> RowSource | None:
        """See `Lookup`: no vector lies in one row."""
        return None

    @torch.no_grad()
    def backward(self, grad: Tensor) -> Tensor:
        """The gradient of the parts' vectors, shape (C, P, D), of that of the pooled vectors."""
        return self._compression.backward(grad, self._looked_up(), self._lowered)

    def _looked_up(self) -> Tensor:
        """The parts' vectors, shape (C, P, D), float32."""
        if self._vectors is None:
            lookup: Lookup = self.inner
            self._vectors = lookup.pooled(torch.float32)
        return self._vectors


class CompressedOptimizer:
    """Lowers batches and gradients for the optimizer of the tables in memory, and names its parts.

    Args:
        compression: What the model's features are looked up as.
        inner: Of the tables in memory.
        world: This rank and the others.
    """

    def __init__(
        self,
        compression: Compression,
        inner: SparseOptimizer | MixedSparseOptimizer | ShardedSparseOptimizer,
        world: World,
    ) -> None:
        self._compression = compression
        self._inner: Any = inner  # takes the lookups that it gave
        self._world = world

    @property
    def why_no_graph(self) -> str:
        """See `SparseOptimizer`."""
        return str(self._inner.why_no_graph)

    def look_up(
        self, sparse: SparseBatch, counts: Sequence[int] = (), *, is_whole: bool
    ) -> CompressedLookup:
        """See `SparseOptimizer` and `ShardedSparseOptimizer`."""
        lowered = self._compression.lower(sparse)
        if self._world.size > 1 and any(bags is not None for bags in lowered.bags):
            counts = self._world.gather(lowered.sparse.num_samples)
        inner = self._inner.look_up(lowered.sparse, counts, is_whole=is_whole)
        return CompressedLookup(self._compression, lowered, inner)

    def take(self, lookup: CompressedLookup, grad: Tensor, scalars: Tensor | None) -> None:
        """See `SparseOptimizer`."""
        self._inner.take(lookup.inner, lookup.backward(grad), scalars)

    def reduce(self) -> None:
        """See `ShardedSparseOptimizer`."""
        self._inner.reduce()

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the gradient of the tables in memory."""
        norm: Tensor = self._inner.squared_norm()
        return norm

    def next_scalars(self, learning_rate: float) -> StepScalars:
        """See `SparseOptimizer`."""
        scalars: StepScalars = self._inner.next_scalars(learning_rate)
        return scalars

    def apply(self, scalars: Tensor) -> None:
        """See `SparseOptimizer`."""
        self._inner.apply(scalars)

    def state_tensors(self) -> Mapping[str, Any]:
        """By table in memory, see `SparseOptimizer`."""
        state: Mapping[str, Any] = self._inner.state_tensors()
        return state
