"""The shards of one width: which rank looks up what, and this rank's part of it.

A slot is a feature looked up in one shard. A rank owns the slots of its shards and looks them up
for the samples of all ranks; slots are ordered by rank, then by feature.

Shapes: W world size, B samples of a rank, A slots of all ranks, S slots of this one, F features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdlrm.batch import SparseBatch
from fastdlrm.model.config import Pooling
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.parallel.plan import Shard, ShardingPlan


class Slot(NamedTuple):
    """A feature looked up in one shard.

    Attributes:
        feature: Its place in the batch.
        table: Its table.
        shard: Part of the table, and the rank that holds it.
        is_partial: Whether other slots of the feature hold other rows.
    """

    feature: int
    table: str
    shard: Shard
    is_partial: bool


class ShardGroup(nn.Module):
    """All shards of one width.

    Attributes:
        width: Columns of each shard.
        slots: Of all ranks, A.
        counts: Slots of each rank.
        has_partial: Whether any table is cut into rows.
        tables: This rank's shards, one table each; those of tables cut into rows have one row more,
            which takes the place of rows that lie elsewhere.
    """

    slot_features: Tensor
    _first_rows: Tensor
    _num_rows: Tensor

    def __init__(
        self,
        plan: ShardingPlan,
        feature_tables: Sequence[str],
        width: int,
        rank: int,
        *,
        pooling: Pooling,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate this rank's shards.

        Args:
            plan: Where every table lies.
            feature_tables: The table of each sparse feature, in the batch's order.
            width: Of the shards that belong to the group.
            rank: This rank.
            pooling: How the rows of a bag become one vector.
            dtype: Of the rows.
            device: Where they lie.
        """
        super().__init__()
        self.width = width
        by_rank = [_slots(plan, feature_tables, width, r) for r in range(plan.world_size)]
        self.slots = [slot for slots in by_rank for slot in slots]
        self.counts = [len(slots) for slots in by_rank]
        self.has_partial = any(slot.is_partial for slot in self.slots)
        own = by_rank[rank]
        shards = {t: s for t, s in plan.of_rank(rank).items() if s.num_columns == width}
        self.tables = EmbeddingTables(
            {
                table: shard.num_rows + (plan.tables[table].sharding == "row_wise")
                for table, shard in shards.items()
            },
            [slot.table for slot in own] * plan.world_size,
            embedding_dim=width,
            pooling=pooling,
            dtype=dtype,
            device=device,
        )
        with torch.no_grad():
            self.tables.weight.zero_()  # the rows that stand for others are never drawn
        features = torch.tensor([slot.feature for slot in self.slots], dtype=torch.int64)
        self.register_buffer("slot_features", features.to(device), persistent=False)
        bounds = torch.tensor([(s.shard.first_row, s.shard.num_rows) for s in own]).view(-1, 2)
        first, num = bounds.to(device, torch.int32).unbind(1)
        self.register_buffer("_first_rows", first, persistent=False)
        self.register_buffer("_num_rows", num, persistent=False)

    @property
    def world_size(self) -> int:
        """W."""
        return len(self.counts)

    def localise(self, ids: Tensor, num_samples: int) -> SparseBatch:
        """Single ids of tables, as they arrive from all ranks, as rows of this rank's shards.

        Args:
            ids: Shape (W * S * B,).
            num_samples: B.
        """
        num_bags = len(self.tables.feature_starts)
        if self.has_partial and num_bags:
            ids_WSB = ids.view(self.world_size, -1, num_samples)
            local = ids_WSB - self._first_rows[:, None]
            is_elsewhere = (local < 0) | (local >= self._num_rows[:, None])
            ids = torch.where(is_elsewhere, self._num_rows[:, None], local).flatten()
        return SparseBatch(ids=ids, lengths=None, weights=None, num_features=num_bags)


def _slots(plan: ShardingPlan, feature_tables: Sequence[str], width: int, rank: int) -> list[Slot]:
    """A rank's slots of one width, by feature."""
    shards = plan.of_rank(rank)
    return [
        Slot(f, table, shards[table], plan.tables[table].sharding == "row_wise")
        for f, table in enumerate(feature_tables)
        if table in shards and shards[table].num_columns == width
    ]
