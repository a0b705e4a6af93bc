"""Sums over all columns of rows whose columns lie on several ranks.

Every rank that holds columns of a table gets the ids of all samples, so all of them know the same
rows of it, in the same order: their sums can be exchanged without asking for sizes.

Shapes: U rows of a table that a batch reads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastdlrm.parallel.plan import ShardingPlan
from fastdlrm.parallel.world import World


class ColumnSums:
    """Adds up what the owners of a table's columns know of each row.

    Args:
        plan: Where every table lies.
        world: This rank and the others.
    """

    def __init__(self, plan: ShardingPlan, world: World) -> None:
        self._world = world
        self._owners = {
            name: [shard.rank for shard in table.shards]
            for name, table in plan.tables.items()
            if table.sharding == "column_wise" and len(table.shards) > 1
        }

    def __bool__(self) -> bool:
        """Whether any table's columns lie on several ranks; the same on all ranks."""
        return bool(self._owners)

    def __call__(self, parts: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Add up; all ranks must call it.

        Args:
            parts: By table of this rank, one number a row, shape (U,), float32.
            like: Any tensor on the device.

        Returns:
            The sums over all columns, the same bits on every owner.
        """
        rank, size = self._world.rank, self._world.size
        own = {name: ranks for name, ranks in self._owners.items() if rank in ranks}
        shared = [[t for t, ranks in own.items() if w in ranks and w != rank] for w in range(size)]
        sizes = [sum(len(parts[t]) for t in tables) for tables in shared]
        sent = torch.cat(
            [parts[t] for tables in shared for t in tables] or [like.new_empty(0).float()]
        )
        received = torch.empty_like(sent)
        self._world.all_to_all(received, sent, sizes, sizes).wait()
        pieces: dict[tuple[str, int], Tensor] = {(t, rank): part for t, part in parts.items()}
        lengths = [len(parts[t]) for tables in shared for t in tables]
        names = [(t, w) for w, tables in enumerate(shared) for t in tables]
        pieces |= dict(zip(names, received.split(lengths), strict=True))
        totals = dict(parts)
        for table, ranks in own.items():
            totals[table] = torch.stack([pieces[table, w] for w in ranks]).sum(0)
        return totals
