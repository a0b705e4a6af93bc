"""The optimizer of the tables: from gradients of pooled vectors to updated rows.

Invariants: it moves only the rows that a batch reads, and their state; micro-batches give exactly
the gradient of the whole batch.

Shapes: B batch, F sparse features, D embedding dim, R rows of all tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.row_gradient import RowGradient, RowOrder, row_gradient, row_order
from fastdlrm.kernels.row_update import UpdateRule, apply_rule_, update_rows_
from fastdlrm.kernels.step_scalars import StepScalars
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.lookup import RowSource
from fastdlrm.parallel.exchange import Gradient
from fastdlrm.train.config import SparseOptimizerConfig
from fastdlrm.train.pooling_weights import WHY_NO_GRAPH, pooling_weight_optimizer
from fastdlrm.train.side import SideStream


@dataclass(frozen=True, slots=True)
class StackLookup:
    """A batch looked up in tables of this process.

    Attributes:
        tables: Looked up in.
        sparse: The batch.
        rows: Row of each id in the stack.
        order: The ids sorted by row, where they are sorted beside the forward pass.
    """

    tables: EmbeddingTables
    sparse: SparseBatch
    rows: Tensor
    order: RowOrder | None = None

    @torch.no_grad()
    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        return self.tables.pool(self.sparse, self.rows, dtype)

    def source(self) -> RowSource | None:
        """See `Lookup`: on a GPU, where every bag is one row as it is."""
        sparse = self.sparse
        is_single = sparse.lengths is None and sparse.weights is None and sparse.num_features > 0
        is_plain = is_single and self.tables.pooling_weight is None
        if not is_plain or not sparse.ids.is_cuda:
            return None
        return RowSource(self.tables.weight, self.rows, scatter=False)


class SparseOptimizer:
    """Collects the gradients of pooled vectors, then updates the rows they came from.

    A step is: `look_up` and `take` for each micro-batch, `squared_norm` if gradients are clipped,
    `apply`. On a GPU ids are sorted and rows are updated beside what else the step does.

    Attributes:
        pooling_weights: Of the learned pooling weights; None where none are learned.
    """

    def __init__(self, config: SparseOptimizerConfig, tables: EmbeddingTables) -> None:
        """Make the state, on the tables' device.

        Args:
            config: Name and numbers.
            tables: What to train; they stay on their device from here on.
        """
        self._rule = UpdateRule(config.name, config.eps, config.l2)
        self._tables = tables
        self._weight = tables.weight.detach()
        self._state = self._rule.zero_state(self._weight)
        self.pooling_weights = pooling_weight_optimizer(config, tables)
        self._num_steps = torch.zeros((), dtype=torch.int64)
        self._batches: list[SparseBatch] = []
        self._grads_FBD: list[Tensor] = []
        self._orders: list[RowOrder | None] = []
        self._gradient: RowGradient | None = None
        self._side = SideStream(tables.feature_starts.device)

    def look_up(
        self, sparse: SparseBatch, counts: Sequence[int] = (), *, is_whole: bool
    ) -> StackLookup:
        """Look up a micro-batch.

        Args:
            sparse: On the tables' device.
            counts: Samples of each rank; of no use here.
            is_whole: Whether it is all of the step's batch; its ids are then sorted at once.
        """
        rows = self._tables.rows(sparse)
        order = None
        if is_whole:
            with self._side(rows):
                order = batch_order(self._tables, sparse, rows)
        return StackLookup(self._tables, sparse, rows, order)

    def take(
        self, lookup: StackLookup, gradient: Gradient | Tensor, scalars: Tensor | None
    ) -> None:
        """Add a micro-batch's gradient.

        Args:
            lookup: What `look_up` gave.
            gradient: Of the pooled vectors, shape (B, F, D), perhaps still on its way; not altered.
            scalars: `next_scalars` as a tensor, where this is the whole batch: its rows are updated
                beside what the current stream does next. None: by `apply`.
        """
        if isinstance(gradient, Tensor):
            gradient = Gradient(gradient)
        if scalars is None:
            self.accumulate(lookup.sparse, gradient.wait(), lookup.order)
            return
        with self._side(*gradient.tensors()):
            self.accumulate(lookup.sparse, gradient.wait(), lookup.order)
            self._update(scalars)

    def accumulate(
        self, sparse: SparseBatch, grad_pooled: Tensor, order: RowOrder | None = None
    ) -> None:
        """Add a micro-batch.

        Args:
            sparse: What was looked up.
            grad_pooled: Gradient of the lookup's result, shape (B, F, D); not altered.
            order: Of `sparse`, where it is at hand.
        """
        self._batches.append(sparse)
        self._grads_FBD.append(grad_pooled.transpose(0, 1))
        self._orders.append(order)
        self._gradient = None

    def reduce(self) -> None:
        """Nothing is to be summed over ranks."""

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the accumulated gradient, without l2: a scalar on the device."""
        gradient = self.gradient()
        if gradient is None:
            return self._weight.new_zeros((), dtype=torch.float32)
        squares = gradient.values.float().square().sum()
        weights = self.pooling_weights
        return squares if weights is None else squares + weights.squared_norm()

    def gradient(self) -> RowGradient | None:
        """The accumulated gradient, row by row; None before anything was accumulated."""
        if self._gradient is None and self._batches:
            summed, weights = row_gradient(*self._accumulated()), self.pooling_weights
            self._gradient = summed if weights is None else weights.split(summed)
        return self._gradient

    def step(self, learning_rate: float, scale: float | Tensor = 1.0) -> None:
        """Update the rows of the accumulated micro-batches and forget these.

        Args:
            learning_rate: After the schedule.
            scale: Factor on the gradient, from clipping; l2 is added afterwards.
        """
        device = self._tables.feature_starts.device
        self.apply(self.next_scalars(learning_rate).tensor(device, scale))

    @property
    def why_no_graph(self) -> str:
        """What keeps a step from being captured as a CUDA graph; empty if nothing does."""
        return "" if self.pooling_weights is None else WHY_NO_GRAPH

    def next_scalars(self, learning_rate: float) -> StepScalars:
        """Count a step and give its numbers; `apply` does it."""
        self._num_steps += 1
        return StepScalars.of_step(learning_rate, int(self._num_steps), self._rule.betas)

    def apply(self, scalars: Tensor, mean_square: Tensor | None = None) -> None:
        """The part of a step that runs on the device; waits for what runs beside it.

        Args:
            scalars: `next_scalars` as a tensor.
            mean_square: As `apply_rule_` takes it, after `gradient`.
        """
        self._side.join()
        self._update(scalars, mean_square)

    def _update(self, scalars: Tensor, mean_square: Tensor | None = None) -> None:
        """Update the rows of the accumulated micro-batches, if there are any, and forget these."""
        if not self._batches:
            return
        gradient = self._gradient if self.pooling_weights is None else self.gradient()
        if gradient is not None:
            apply_rule_(self._weight, self._state, gradient, self._rule, scalars, mean_square)
            if self.pooling_weights is not None:
                self.pooling_weights.update(scalars)
        else:
            update_rows_(self._weight, self._state, *self._accumulated(), self._rule, scalars)
        self._batches, self._grads_FBD, self._orders, self._gradient = [], [], [], None

    @property
    def stacked_state(self) -> dict[str, Tensor]:
        """The rule's state by name, each of the whole stack, live."""
        return self._state

    def state_tensors(self) -> dict[str, Tensor]:
        """Live tensors by name, each table on its own; copying into one changes the state."""
        weights = self.pooling_weights
        groups = {
            "tables": self._state,
            "pooling_weights": {} if weights is None else weights.stacked_state,
        }
        named = {
            f"{group}.{table}.{name}": self._tables.of_table(table, stacked)
            for group, state in groups.items()
            for name, stacked in state.items()
            for table in self._tables.num_embeddings
        }
        return {**named, "num_steps": self._num_steps}

    def _accumulated(self) -> tuple[Tensor, RowOrder]:
        """All micro-batches as one batch: gradient of each bag, and the order of its ids."""
        grads = self._grads_FBD
        grad_FBD = grads[0] if len(grads) == 1 else torch.cat(grads, 1)
        order = self._orders[0] if len(self._orders) == 1 else None
        if order is None:
            sparse = SparseBatch.concat(self._batches)
            order = batch_order(self._tables, sparse, self._tables.rows(sparse))
        return grad_FBD.flatten(0, 1), order


def batch_order(tables: EmbeddingTables, sparse: SparseBatch, rows: Tensor) -> RowOrder:
    """Sort a batch's ids by row.

    Args:
        tables: Looked up in.
        sparse: The batch.
        rows: Row of each id in the stack.
    """
    offsets = None if sparse.lengths is None else sparse.offsets()
    segments = tables.segments(sparse, offsets)
    return row_order(rows, offsets, tables.weighted(sparse).weights, tables.pooling, segments)
