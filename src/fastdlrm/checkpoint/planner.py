"""What a rank writes of live tensors, and what it reads for others: plans of torch's checkpoints.

A tensor's name in a plan is `GROUP/NAME`. Plain tensors are the same on all ranks: the first writes
them, each reads them whole. Of a `TensorShard` a rank writes and reads its own piece.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Size, Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from fastdlrm.errors import CheckpointError
from fastdlrm.parallel.tensor_shard import TensorShard

Live = Tensor | TensorShard


class ShardSavePlanner(DefaultSavePlanner):
    """Plans what this rank writes; torch's own planner finds gaps and overlaps between ranks."""

    def __init__(self) -> None:
        super().__init__(
            flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
        )

    def create_local_plan(self) -> SavePlan:
        """An item a tensor, empty pieces left out."""
        live: Mapping[str, Live] = self.state_dict
        self.plan = SavePlan(
            [
                _write_item(name, value)
                for name, value in live.items()
                if isinstance(value, Tensor) or value.tensor.numel() or not prod(value.full_shape)
            ]
        )
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The tensor of an item."""
        value: Live = self.state_dict[index.fqn]
        return value if isinstance(value, Tensor) else value.tensor


class ShardLoadPlanner(LoadPlanner):
    """Plans what this rank reads.

    Args:
        where: The checkpoint, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._live: Mapping[str, Live] = {}
        self._stored: Mapping[str, Any] = {}

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Take what is to be loaded, and what there is."""
        assert metadata is not None
        self._live, self._stored = state_dict, metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        """The parts of stored pieces that this rank's tensors are made of.

        Raises:
            CheckpointError: A tensor has another shape, or is not stored in full.
        """
        items = [
            item
            for name, value in self._live.items()
            if name in self._stored
            for item in self._read_items(name, value, self._stored[name])
        ]
        return LoadPlan(items, planner_data=list(self._live))

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Check the names of all ranks' tensors against the stored ones.

        Raises:
            CheckpointError: One is only here or there: the checkpoint is of another model.
        """
        wanted = {name for plan in global_plan for name in plan.planner_data}
        for full_name in sorted(wanted ^ set(self._stored)):
            side = "the model" if full_name in wanted else "the checkpoint"
            group, _, name = full_name.partition("/")
            raise CheckpointError(
                f"{self._where}/{group}: tensor {name!r} is only in {side}; load it into the "
                "model that made it"
            )
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Nothing is left to plan."""
        return central_plan

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The part of a live tensor that an item is to fill."""
        value = self._live[read_item.dest_index.fqn]
        part = value if isinstance(value, Tensor) else value.tensor
        for dim, start in enumerate(read_item.dest_offsets):
            part = part.narrow(dim, start, read_item.lengths[dim])
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: the part is live."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Nothing: only tensors are stored."""

    def _read_items(self, name: str, value: Live, stored: TensorStorageMetadata) -> list[ReadItem]:
        group, _, short = name.partition("/")
        where = f"{self._where}/{group}: tensor {short!r}"
        full_shape, chunk = _place(value)
        if full_shape != stored.size:
            raise CheckpointError(
                f"{where} has shape {tuple(stored.size)}, the model wants {tuple(full_shape)}; "
                "load it into the model that made it"
            )
        items: list[ReadItem] = create_read_items_for_chunk_list(name, stored, [chunk])
        found, wanted = sum(prod(item.lengths) for item in items), prod(chunk.sizes)
        if found != wanted:
            raise CheckpointError(
                f"{where}: {found} of {wanted} numbers are stored; use another checkpoint"
            )
        return items


def _place(value: Live) -> tuple[Size, ChunkStorageMetadata]:
    """Shape of the whole, and where a live tensor lies in it."""
    if isinstance(value, Tensor):
        return value.shape, ChunkStorageMetadata(Size([0] * value.dim()), value.shape)
    return Size(value.full_shape), ChunkStorageMetadata(Size(value.offsets), value.tensor.shape)


def _write_item(name: str, value: Live) -> WriteItem:
    is_whole = isinstance(value, Tensor)
    full_shape, chunk = _place(value)
    dtype = value.dtype if isinstance(value, Tensor) else value.tensor.dtype
    return WriteItem(
        index=MetadataIndex(name, chunk.offsets),
        type=WriteItemType.TENSOR if is_whole else WriteItemType.SHARD,
        tensor_data=TensorWriteData(chunk, TensorProperties(dtype=dtype), full_shape),
    )
