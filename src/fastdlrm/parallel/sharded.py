"""Embedding tables spread over ranks, in the place of `EmbeddingTables` in a model.

Every rank calls it with its own samples, and all ranks call it in the same order.

Shapes: B samples of this rank, F sparse features, D embedding dim, R rows of a table.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastdlrm.batch import SparseBatch
from fastdlrm.model.config import Init
from fastdlrm.model.embedding import Draw, EmbeddingTables, draw_, drawn_rows
from fastdlrm.model.pooling import TablePooling, rule_and_means, with_shares
from fastdlrm.parallel.exchange import Exchange, JaggedExchange, StaticExchange
from fastdlrm.parallel.placement import Placement
from fastdlrm.parallel.plan import Shard, ShardingPlan
from fastdlrm.parallel.tensor_shard import TensorShard
from fastdlrm.parallel.world import World


class ShardedTables(nn.Module):
    """This rank's part of T tables.

    Attributes:
        placement: What lies where.
    """

    def __init__(
        self,
        plan: ShardingPlan,
        feature_tables: Sequence[str],
        world: World,
        *,
        pooling: TablePooling = "sum",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate this rank's part; zeros until `initialise`.

        Args:
            plan: Where every table lies; it fits the tables.
            feature_tables: The table of each sparse feature, in the batch's order.
            world: This rank and the others.
            pooling: How the rows of a bag become one vector.
            dtype: Of the rows.
            device: Where they lie.
        """
        super().__init__()
        rule, takes_mean = rule_and_means(pooling, feature_tables)
        if rule == "mean" and plan.cuts_rows:  # no rank has all of a bag
            rule, takes_mean = "sum", torch.ones(len(feature_tables), dtype=torch.bool)
        self._takes_mean = None if takes_mean is None else takes_mean.to(device)
        self.placement = Placement(
            plan,
            feature_tables,
            world,
            pooling=rule,
            dtype=dtype,
            device=torch.device(device),
        )

    def learn_weights(self) -> None:
        """As `EmbeddingTables`; a weight lies wherever columns of its row do."""
        for stack in self.placement.stacks:
            stack.learn_weights()

    @property
    def num_embeddings(self) -> dict[str, int]:
        """Rows by table, of all ranks together."""
        return self.placement.plan.num_embeddings

    @torch.no_grad()
    def initialise(
        self,
        init: Init,
        generator: torch.Generator,
        std: float = 0.01,
        draws: Mapping[str, Draw] | None = None,
    ) -> None:
        """Draw the very numbers that `EmbeddingTables.initialise` draws, and keep this rank's.

        Args:
            init: See there.
            generator: On the CPU; left as it is after a whole table's numbers.
            std: See there.
            draws: See there.
        """
        draws = draws or {}
        plan = self.placement.plan
        own = {table: (tensor, shard) for table, tensor, shard in self._own()}
        for name, num_rows in plan.num_embeddings.items():
            tensor, shard = own.get(name, (None, None))
            dtype, dim = self.placement.replicated.weight.dtype, plan.dim_of(name)
            for start, stop in drawn_rows(num_rows, dim):
                drawn = torch.empty(stop - start, dim, dtype=dtype)
                draw_(drawn, draws.get(name, Draw(num_rows)), init, generator, std)
                if tensor is None or shard is None:
                    continue
                low = max(start, shard.first_row)
                high = min(stop, shard.first_row + shard.num_rows)
                if low < high:
                    columns = slice(shard.first_column, shard.first_column + shard.num_columns)
                    part = tensor[low - shard.first_row : high - shard.first_row]
                    part.copy_(drawn[low - start : high - start, columns])

    def exchange(self, sparse: SparseBatch, counts: Sequence[int]) -> Exchange:
        """Send a batch's ids to the owners of their rows.

        Args:
            sparse: This rank's samples.
            counts: Samples of each rank, the same on all ranks.
        """
        sparse = with_shares(sparse, self._takes_mean)
        is_single = sparse.lengths is None and sparse.weights is None
        if is_single and sparse.num_features and len(set(counts)) == 1 and counts[0]:
            return StaticExchange(self.placement, sparse)
        return JaggedExchange(self.placement, sparse, counts)

    def forward(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        """As `EmbeddingTables`; the ranks may have different numbers of samples.

        Args:
            sparse: This rank's samples; without features nothing is asked of other ranks.
            dtype: Of the result; None: the tables'.
        """
        if not sparse.num_features:
            return self.placement.replicated(sparse, dtype)
        dtype = dtype or self.placement.replicated.weight.dtype
        exchange = self.exchange(sparse, self.placement.world.gather(sparse.num_samples))
        with torch.no_grad():
            exchange.send(
                [
                    look_up(stack, arrived, dtype)
                    for stack, arrived in zip(self.placement.stacks, exchange.arrived, strict=True)
                ]
            )
            return exchange.pooled(dtype)

    def state_tensors(self) -> dict[str, Tensor | TensorShard]:
        """This rank's live part of each table, by table; of a replicated table all of it."""
        return self.of_tables([stack.weight.detach() for stack in self.placement.stacks])

    def pooling_weights(self) -> dict[str, Tensor | TensorShard]:
        """This rank's live part of each table's learned pooling weights; none: all are 1."""
        stacks = self.placement.stacks
        weights = [x.pooling_weight.detach() for x in stacks if x.pooling_weight is not None]
        return self.of_tables(weights) if weights else {}

    def of_tables(self, stacked: Sequence[Tensor]) -> dict[str, Tensor | TensorShard]:
        """This rank's part of each table in tensors that lie like the stacks.

        Args:
            stacked: One a stack; the first dimension is that of the stack's weight, a second one
                likewise.

        Returns:
            By table, as views.
        """
        plan = self.placement.plan
        parts: dict[str, Tensor | TensorShard] = {}
        for group, tensor in zip(self.placement.groups, stacked, strict=False):
            for table in group.tables.num_embeddings:
                shard = plan.of_rank(self.placement.world.rank)[table]
                own = group.tables.of_table(table, tensor)[: shard.num_rows]
                full_shape = (plan.num_embeddings[table], plan.dim_of(table))[: tensor.dim()]
                offsets = (shard.first_row, shard.first_column)[: tensor.dim()]
                is_copy = tensor.dim() == 1 and shard.first_column > 0
                parts[table] = TensorShard(own, full_shape, offsets, is_copy)
        replicated = self.placement.replicated
        for table in replicated.num_embeddings:
            parts[table] = replicated.of_table(table, stacked[-1])
        return {table: parts[table] for table in plan.num_embeddings if table in parts}

    def _own(self) -> Iterator[tuple[str, Tensor, Shard]]:
        """Each table this rank holds something of: its part, and which part it is."""
        plan = self.placement.plan
        shards = plan.of_rank(self.placement.world.rank)
        for group in self.placement.groups:
            for table in group.tables.num_embeddings:
                yield table, group.tables.table(table), shards[table]
        for table, num_rows in self.placement.replicated.num_embeddings.items():
            whole = Shard(
                rank=self.placement.world.rank,
                first_row=0,
                num_rows=num_rows,
                first_column=0,
                num_columns=plan.embedding_dim,
            )
            yield table, self.placement.replicated.table(table), whole


def look_up(stack: EmbeddingTables, arrived: SparseBatch, dtype: torch.dtype) -> Tensor:
    """What a stack was asked for, shape (B', F', D'); nothing where it was asked for nothing."""
    if not arrived.num_features:
        return stack.weight.new_empty(0, 0, stack.weight.shape[1], dtype=dtype)
    pooled: Tensor = stack(arrived, dtype)
    return pooled
