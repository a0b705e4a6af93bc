"""Where each sparse feature is looked up, seen from one rank.

Shapes: W world size, B samples of a rank, A slots of all ranks (see `fastdlrm.parallel.group`),
F sparse features, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdlrm.model.config import Pooling
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.parallel.group import ShardGroup
from fastdlrm.parallel.plan import ShardingPlan
from fastdlrm.parallel.world import World


class Placement(nn.Module):
    """All stacks of tables of one rank, and which of them serves which feature.

    Attributes:
        plan: Where every table lies.
        world: This rank and the others.
        groups: By width, that of D first, though nothing may be in it; a narrow table's shards are
            in that of their width, as those of a table cut into columns are.
        replicated: The data_parallel tables, whole.
        replicated_features: Features of those, ascending.
        whole_features: Features whose vectors come D wide, ascending: those of the first group and
            `replicated_features`.
        has_narrow: Whether any table is narrower than D, so that its vectors end in zeros.
    """

    replicated_features: Tensor
    whole_features: Tensor

    def __init__(
        self,
        plan: ShardingPlan,
        feature_tables: Sequence[str],
        world: World,
        *,
        pooling: Pooling,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate this rank's tables; `plan` fits them.

        Args:
            plan: Where every table lies.
            feature_tables: The table of each sparse feature, in the batch's order.
            world: This rank and the others.
            pooling: How the rows of a bag become one vector.
            dtype: Of the rows.
            device: Where they lie.
        """
        super().__init__()
        self.plan = plan
        self.world = world
        self.has_narrow = bool(plan.table_dims)
        D = plan.embedding_dim
        shards = [shard for table in plan.tables.values() for shard in table.shards]
        widths = sorted({shard.num_columns for shard in shards} - {D}, reverse=True)
        self.groups: list[ShardGroup] = nn.ModuleList(  # type: ignore[assignment]
            ShardGroup(
                plan,
                feature_tables,
                width,
                world.rank,
                pooling=pooling,
                dtype=dtype,
                device=device,
            )
            for width in (D, *widths)
        )
        copied = [t for t, table in plan.tables.items() if table.sharding == "data_parallel"]
        replicated = [f for f, table in enumerate(feature_tables) if table in copied]
        self.replicated = EmbeddingTables(
            {table: plan.num_embeddings[table] for table in copied},
            [feature_tables[f] for f in replicated],
            embedding_dim=D,
            pooling=pooling,
            dtype=dtype,
            device=device,
        )
        self._slots_of: dict[int, list[int]] = {}
        for i, slot in enumerate(self.groups[0].slots):
            self._slots_of.setdefault(slot.feature, []).append(i)
        num_slots = len(self.groups[0].slots)
        place_of = {f: slots[0] for f, slots in self._slots_of.items()}
        place_of |= {f: num_slots + i for i, f in enumerate(replicated)}
        whole = sorted(place_of)
        indices = {"replicated_features": replicated, "whole_features": whole}
        for name, features in indices.items():
            tensor = torch.tensor(features, dtype=torch.int64, device=device)
            self.register_buffer(name, tensor, persistent=False)
        places = [place_of[f] for f in whole]
        self._places = torch.tensor(places, dtype=torch.int32, device=device)
        self._partial = [
            (i, f, *self._owners(f)) for i, f in enumerate(whole) if self._is_partial(f)
        ]
        self._rows_by_size: dict[int, Tensor] = {}

    @property
    def stacks(self) -> list[EmbeddingTables]:
        """Tables of this rank: one stack for each group, then the replicated one."""
        return [*(group.tables for group in self.groups), self.replicated]

    def slot_rows(self, ids_FB: Tensor) -> Tensor:
        """Where the vectors of single ids lie among those of all slots, then of replicated tables.

        Args:
            ids_FB: The batch's ids, shape (F, B).

        Returns:
            Shape (len(whole_features), B), int32: slot times B plus sample. Of a table cut into
            rows it is the slot of the rank that holds the id's row.
        """
        B = ids_FB.shape[1]
        if B not in self._rows_by_size:
            with torch.inference_mode(False):  # an evaluation's must serve training too
                samples = torch.arange(B, dtype=torch.int32, device=ids_FB.device)
                self._rows_by_size = {B: self._places[:, None] * B + samples}
        rows = self._rows_by_size[B]
        if not self._partial:
            return rows
        rows = rows.clone()
        samples = torch.arange(B, dtype=torch.int32, device=ids_FB.device)
        for i, feature, starts, places in self._partial:
            # of shards that begin at one row all but the last are empty
            owner = torch.searchsorted(starts, ids_FB[feature], right=True) - 1
            rows[i] = places[owner] * B + samples
        return rows

    def _is_partial(self, feature: int) -> bool:
        """Whether a feature's table is cut into rows, on several ranks."""
        return len(self._slots_of.get(feature, ())) > 1

    def _owners(self, feature: int) -> tuple[Tensor, Tensor]:
        """First row of each of a feature's shards, ascending, and the slot that serves it."""
        slots = [(self.groups[0].slots[k].shard.first_row, k) for k in self._slots_of[feature]]
        starts, places = torch.tensor(sorted(slots), dtype=torch.int32).unbind(1)
        device = self.replicated_features.device
        return starts.to(device).contiguous(), places.to(device).contiguous()
