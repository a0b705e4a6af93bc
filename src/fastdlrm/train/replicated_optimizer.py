"""The optimizer of tables that every rank holds whole.

Each rank sums its own samples' gradients into a gradient of the whole tables; these are summed over
the ranks, and all ranks make the same update. Meant for small tables. On a GPU all of it runs
beside what else the step does.

Shapes: R rows of these tables, D embedding dim.
"""

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.library import has_gpu_kernels
from fastdlrm.kernels.row_gradient import RowGradient, RowOrder
from fastdlrm.kernels.row_update import UpdateRule, apply_rule_, update_rows_
from fastdlrm.kernels.step_scalars import StepScalars
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.parallel.exchange import Gradient
from fastdlrm.parallel.world import Pending, World
from fastdlrm.train.config import SparseOptimizerConfig
from fastdlrm.train.pooling_weights import pooling_weight_optimizer
from fastdlrm.train.side import SideStream
from fastdlrm.train.sparse_optimizer import StackLookup, batch_order

if has_gpu_kernels():
    from fastdlrm.kernels.cuda.row_update import row_chunks

_SUM = UpdateRule("sgd")


class ReplicatedOptimizer:
    """A step is: `look_up` and `take` for each micro-batch, `reduce`, `apply`.

    Attributes:
        asks_for_rows: Whether which rows were read is summed over the ranks too, and no CUDA graph
            can hold the step: the rule moves rows of zero gradient, or pooling weights are learned.
        pooling_weights: Of the learned pooling weights; None where none are learned.
    """

    def __init__(
        self, config: SparseOptimizerConfig, tables: EmbeddingTables, world: World
    ) -> None:
        """Make the state, on the tables' device.

        Args:
            config: Name and numbers.
            tables: What to train; the same on all ranks.
            world: This rank and the others.
        """
        self._rule = UpdateRule(config.name, config.eps, config.l2)
        self.pooling_weights = pooling_weight_optimizer(config, tables)
        moves_unread_rows = config.l2 != 0 or config.name == "adam"
        self.asks_for_rows = moves_unread_rows or self.pooling_weights is not None
        self._tables = tables
        self._world = world
        self._weight = tables.weight.detach()
        self.stacked_state = self._rule.zero_state(self._weight)
        num_rows, device = len(self._weight), self._weight.device
        self._gradient = torch.zeros(self._weight.shape, device=device)
        self._visits = torch.zeros(num_rows if self.asks_for_rows else 0, device=device)
        self._add = StepScalars(-1.0).tensor(device)
        every_row = torch.arange(num_rows, device=device, dtype=torch.int32)
        on_gpu = device.type == "cuda" and has_gpu_kernels()
        chunks = row_chunks(every_row) if on_gpu and num_rows else None
        self._every_row = RowOrder(every_row, every_row, None, chunks)
        self._pending: list[Pending] = []
        self._side = SideStream(device)

    def look_up(self, sparse: SparseBatch) -> StackLookup:
        """Look up a micro-batch of this rank's own samples, and sort its ids."""
        rows = self._tables.rows(sparse)
        with self._side(rows):
            order = batch_order(self._tables, sparse, rows)
        return StackLookup(self._tables, sparse, rows, order)

    def take(self, lookup: StackLookup, gradient: Gradient) -> None:
        """Add a micro-batch's gradient."""
        if not lookup.sparse.num_features or not len(lookup.sparse.ids):
            return
        assert lookup.order is not None
        with self._side(*gradient.tensors()):
            bags = gradient.wait().transpose(0, 1).flatten(0, 1)
            update_rows_(self._gradient, {}, bags, lookup.order, _SUM, self._add)
            if self.asks_for_rows:
                self._visits.index_fill_(0, lookup.rows.long(), 1.0)

    def reduce(self) -> None:
        """Start summing the gradient over the ranks."""
        if len(self._gradient):
            with self._side():
                self._pending.append(self._world.all_reduce(self._gradient))
                if self.asks_for_rows:
                    self._pending.append(self._world.all_reduce(self._visits))

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the gradient of all ranks."""
        with self._side():
            self._wait()
        self._side.join()
        gradient, weights = self._gradient, self.pooling_weights
        if weights is None:
            return gradient.square().sum()
        squares = weights.split(RowGradient(self._every_row.rows.long(), gradient)).values.square()
        return squares.sum() + weights.squared_norm()

    def apply(self, scalars: Tensor) -> None:
        """Update; afterwards nothing is accumulated.

        Args:
            scalars: `StepScalars.tensor` of the step.
        """
        if not len(self._gradient):
            return
        with self._side():
            self._wait()
            self._update(scalars)
        self._side.join()

    def _update(self, scalars: Tensor) -> None:
        if self.asks_for_rows:
            rows, weights = self._visits.nonzero().flatten(), self.pooling_weights
            read = RowGradient(rows, self._gradient.index_select(0, rows))
            if weights is not None:
                read = weights.split(read)
                weights.update(scalars)
            apply_rule_(self._weight, self.stacked_state, read, self._rule, scalars)
            self._visits.zero_()
        else:
            every = (self._gradient, self._every_row, self._rule, scalars)
            update_rows_(self._weight, self.stacked_state, *every)
        self._gradient.zero_()

    def _wait(self) -> None:
        while self._pending:
            self._pending.pop().wait()
