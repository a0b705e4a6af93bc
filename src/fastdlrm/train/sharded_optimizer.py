"""The optimizer of tables that lie on several ranks: `SparseOptimizer`'s part in a step.

Every rank updates the rows it holds by the gradients of all ranks' samples, in the order of the
global batch, so that neither the plan nor the number of ranks changes what is learned.

Shapes: B batch, F sparse features, D embedding dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.row_gradient import RowGradient
from fastdlrm.kernels.row_update import UpdateRule, scaled_gradient
from fastdlrm.kernels.step_scalars import StepScalars
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.lookup import RowSource
from fastdlrm.parallel.column_sums import ColumnSums
from fastdlrm.parallel.exchange import Exchange
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.tensor_shard import TensorShard
from fastdlrm.train.config import SparseOptimizerConfig
from fastdlrm.train.pooling_weights import WHY_NO_GRAPH
from fastdlrm.train.replicated_optimizer import ReplicatedOptimizer
from fastdlrm.train.sparse_optimizer import SparseOptimizer, StackLookup


@dataclass(frozen=True, slots=True)
class ShardedLookup:
    """A batch looked up on all ranks.

    Attributes:
        exchange: Between the ranks; None where there are no sparse features.
        lookups: What each of this rank's stacks looked up for the others, or itself; None where it
            was asked for nothing.
        empty: The vectors of a batch without sparse features, shape (0, 0, D).
    """

    exchange: Exchange | None
    lookups: list[StackLookup | None]
    empty: Tensor

    @torch.no_grad()
    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        return self.empty.to(dtype) if self.exchange is None else self.exchange.pooled(dtype)

    def source(self) -> RowSource | None:
        """See `Lookup`."""
        return None if self.exchange is None else self.exchange.source()


class ShardedSparseOptimizer:
    """A step is: `look_up` and `take` for each micro-batch, `reduce`, `apply`."""

    def __init__(
        self,
        config: SparseOptimizerConfig,
        tables: ShardedTables,
        exchange_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make the state of this rank's rows, on the tables' device.

        Args:
            config: Name and numbers.
            tables: What to train.
            exchange_dtype: Of pooled vectors and gradients on their way.
        """
        placement = tables.placement
        self._rule = UpdateRule(config.name, config.eps, config.l2)
        self._tables = tables
        self._world = placement.world
        self._exchange_dtype = exchange_dtype
        self._stacks = [SparseOptimizer(config, group.tables) for group in placement.groups]
        self._replicated = ReplicatedOptimizer(config, placement.replicated, placement.world)
        sums = ColumnSums(placement.plan, placement.world)
        self._is_rowwise = config.name == "rowwise_adagrad"
        self._learns_weights = placement.replicated.pooling_weight is not None
        self._column_sums = sums if sums and (self._is_rowwise or self._learns_weights) else None
        self._num_steps = torch.zeros((), dtype=torch.int64)

    @property
    def why_no_graph(self) -> str:
        """What keeps a step from being captured as a CUDA graph; empty if nothing does."""
        if self._learns_weights:
            return WHY_NO_GRAPH
        if self._column_sums is not None:
            return "row-wise Adagrad sums rows whose columns lie on several ranks"
        has_replicated = len(self._tables.placement.replicated.num_embeddings) > 0
        if has_replicated and self._replicated.asks_for_rows:
            return "adam and l2 need to know which rows of a data_parallel table were read"
        return ""

    def look_up(
        self, sparse: SparseBatch, counts: Sequence[int], *, is_whole: bool
    ) -> ShardedLookup:
        """Look up a micro-batch on all ranks; its vectors are on their way back when this returns.

        Args:
            sparse: This rank's samples, on the tables' device.
            counts: Samples of each rank.
            is_whole: Whether it is all of the step's batch; its ids are then sorted at once.
        """
        empty = self._tables.placement.replicated.weight.new_empty(
            0, 0, self._tables.placement.plan.embedding_dim
        )
        if not sparse.num_features:
            return ShardedLookup(None, [], empty)
        exchange = self._tables.exchange(sparse, counts)
        *arrived, own = exchange.arrived
        lookups = [
            optimizer.look_up(ids, is_whole=is_whole) if ids.num_features else None
            for optimizer, ids in zip(self._stacks, arrived, strict=True)
        ]
        lookups.append(self._replicated.look_up(own) if own.num_features else None)
        widths = [stack.weight.shape[1] for stack in self._tables.placement.stacks]
        exchange.send(
            [
                empty.new_empty(0, 0, width, dtype=self._exchange_dtype)
                if lookup is None
                else lookup.pooled(self._exchange_dtype)
                for lookup, width in zip(lookups, widths, strict=True)
            ]
        )
        return ShardedLookup(exchange, lookups, empty)

    def take(self, lookup: ShardedLookup, grad: Tensor, scalars: Tensor | None) -> None:
        """Add a micro-batch's gradient: send it to the rows' owners.

        Args:
            lookup: What `look_up` gave.
            grad: Of the pooled vectors, shape (B, F, D) or as `RowSource` asks.
            scalars: As `SparseOptimizer.take` takes it.
        """
        if lookup.exchange is None:
            return
        *gradients, own = lookup.exchange.send_gradient(grad)
        *lookups, replicated = lookup.lookups
        if self._column_sums is not None:
            scalars = None
        for optimizer, part, gradient in zip(self._stacks, lookups, gradients, strict=True):
            if part is None:
                gradient.wait()
            else:
                optimizer.take(part, gradient, scalars)
        if replicated is not None:
            self._replicated.take(replicated, own)

    def reduce(self) -> None:
        """Sum pooling weights' gradients over columns; start summing those of replicated tables."""
        if self._learns_weights and self._column_sums is not None:
            self._sum_weight_gradients()
        self._replicated.reduce()

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the gradient of all tables on all ranks."""
        total = torch.stack([optimizer.squared_norm() for optimizer in self._stacks]).sum()
        total -= self._counted_elsewhere()
        self._world.all_reduce(total).wait()
        return total + self._replicated.squared_norm()

    def next_scalars(self, learning_rate: float) -> StepScalars:
        """Count a step and give its numbers; `apply` does it."""
        self._num_steps += 1
        return StepScalars.of_step(learning_rate, int(self._num_steps), self._rule.betas)

    def apply(self, scalars: Tensor) -> None:
        """Update what `take` has not updated yet.

        Args:
            scalars: `next_scalars` as a tensor.
        """
        means: list[Tensor | None] = [None] * len(self._stacks)
        if self._is_rowwise and self._column_sums is not None:
            means = self._mean_squares(scalars)
        for optimizer, mean in zip(self._stacks, means, strict=True):
            optimizer.apply(scalars, mean)
        self._replicated.apply(scalars)

    def state_tensors(self) -> dict[str, Tensor | TensorShard]:
        """This rank's live parts by name; copying into one changes the state."""
        replicated = self._replicated
        weights = [*(stack.pooling_weights for stack in self._stacks), replicated.pooling_weights]
        groups = {
            "tables": [*(stack.stacked_state for stack in self._stacks), replicated.stacked_state],
            "pooling_weights": [part.stacked_state for part in weights if part is not None],
        }
        named = {
            f"{group}.{table}.{name}": part
            for group, states in groups.items()
            if states
            for name in self._rule.state_names
            for table, part in self._tables.of_tables([state[name] for state in states]).items()
        }
        return {**named, "num_steps": self._num_steps}

    def _mean_squares(self, scalars: Tensor) -> list[Tensor | None]:
        """For each stack, the mean of each read row's squared gradient over all columns."""
        scale = StepScalars(*scalars.tolist()).gradient_scale
        parts = []
        for optimizer, group in zip(self._stacks, self._tables.placement.groups, strict=True):
            gradient = optimizer.gradient()
            if gradient is not None:
                weight = group.tables.weight.detach()
                values = scaled_gradient(weight, gradient, self._rule, scale).values
                gradient = RowGradient(gradient.rows, values.float().square().sum(1))
            parts.append(gradient)
        return self._over_columns(parts, takes_mean=True)

    def _sum_weight_gradients(self) -> None:
        """Give every owner of some columns of a row the gradient of the row's pooling weight."""
        totals = self._over_columns([_weight_gradient(optimizer) for optimizer in self._stacks])
        for optimizer, total in zip(self._stacks, totals, strict=True):
            weights = optimizer.pooling_weights
            if weights is not None and optimizer.gradient() is not None and total is not None:
                weights.gradient = weights.gradient._replace(values=total.unsqueeze(1))

    def _over_columns(
        self, parts: Sequence[RowGradient | None], *, takes_mean: bool = False
    ) -> list[Tensor | None]:
        """One number a read row, summed over the owners of its columns.

        Args:
            parts: For each stack, values of shape (U,), of its columns; None: nothing was read.
            takes_mean: Whether the sum is divided by the row's columns.

        Returns:
            For each stack the sums; None where it has no table.
        """
        assert self._column_sums is not None
        plan = self._tables.placement.plan
        like, groups = self._tables.placement.replicated.weight, self._tables.placement.groups
        by_table: dict[str, Tensor] = {}
        for part, group in zip(parts, groups, strict=True):
            if part is None:
                by_table |= dict.fromkeys(group.tables.num_embeddings, like.new_empty(0).float())
            else:
                by_table |= _by_table(group.tables, *part)
        totals = self._column_sums(by_table, like)
        if takes_mean:
            totals = {table: total / plan.dim_of(table) for table, total in totals.items()}
        return [
            torch.cat([totals[table] for table in group.tables.num_embeddings])
            if group.tables.num_embeddings
            else None
            for group in groups
        ]

    def _counted_elsewhere(self) -> Tensor:
        """Squares of pooling weights' gradients that the owner of a row's first columns counts."""
        total = self._tables.placement.replicated.weight.new_zeros(()).float()
        own = self._tables.placement.plan.of_rank(self._world.rank)
        for optimizer, group in zip(self._stacks, self._tables.placement.groups, strict=True):
            gradient = _weight_gradient(optimizer)
            if gradient is not None:
                for table, values in _by_table(group.tables, *gradient).items():
                    if own[table].first_column > 0:
                        total += values.square().sum()
        return total


def _weight_gradient(optimizer: SparseOptimizer) -> RowGradient | None:
    """Of a stack's pooling weights, values of shape (U,); None where there are none, or no ids."""
    weights = optimizer.pooling_weights
    if weights is None or optimizer.gradient() is None:
        return None
    rows, values = weights.gradient
    return RowGradient(rows, values.squeeze(1))


def _by_table(tables: EmbeddingTables, rows: Tensor, values: Tensor) -> dict[str, Tensor]:
    """Values of ascending rows of a stack, cut into one tensor a table."""
    sizes = list(tables.num_embeddings.values())
    ends = torch.tensor(sizes, device=rows.device).cumsum(0)
    edges = torch.searchsorted(rows, ends.to(rows.dtype)).tolist()
    pieces = values.tensor_split(edges[:-1])
    return dict(zip(tables.num_embeddings, pieces, strict=True))
