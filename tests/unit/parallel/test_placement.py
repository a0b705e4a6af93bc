"""Where vectors lie among those that come back, worked by hand."""

import torch

from fastdlrm.parallel.placement import Placement
from fastdlrm.parallel.plan import (
    ShardingPlan,
    column_wise,
    data_parallel,
    row_wise,
    table_wise,
)
from fastdlrm.parallel.world import World


def place(rank: int) -> Placement:
    rows = {"a": 5, "b": 3, "c": 2, "d": 9}
    plan = ShardingPlan(
        world_size=2,
        embedding_dim=4,
        num_embeddings=rows,
        tables={
            "a": row_wise(5, 4, [1, 0]),  # rows 0, 1 on rank 1; 2, 3, 4 on rank 0
            "b": table_wise(3, 4, 1),
            "c": data_parallel(),
            "d": column_wise(9, 4, [0, 1]),
        },
    )
    device = torch.device("cpu")
    features = ["d", "c", "a", "b"]
    return Placement(
        plan, features, World(rank, 2), pooling="sum", dtype=torch.float32, device=device
    )


def test_slots_of_a_group() -> None:
    for rank in range(2):
        whole, half = place(rank).groups
        assert [(slot.feature, slot.shard.rank) for slot in whole.slots] == [(2, 0), (2, 1), (3, 1)]
        assert (whole.width, whole.counts) == (4, [1, 2])
        assert [(slot.feature, slot.shard.rank) for slot in half.slots] == [(0, 0), (0, 1)]
        assert (half.width, half.counts) == (2, [1, 1])


def test_slot_rows() -> None:
    """Slots: a on rank 0, a on rank 1, b, then c, which is replicated; of three samples each."""
    ids_FB = torch.tensor([[8, 8, 8], [0, 1, 0], [1, 2, 4], [2, 2, 0]], dtype=torch.int32)
    placement = place(0)
    assert placement.whole_features.tolist() == [1, 2, 3]
    rows = [
        [9, 10, 11],  # c: the fourth of 3 vectors each
        [3, 1, 2],  # a: row 1 lies on rank 1, the second slot; 2 and 4 on rank 0, the first
        [6, 7, 8],  # b: the third
    ]
    assert placement.slot_rows(ids_FB).tolist() == rows
    assert placement.slot_rows(ids_FB).tolist() == rows  # those of this batch size are kept


def test_a_rank_holds_its_own_part() -> None:
    shapes = [
        [{t: tuple(stack.table(t).shape) for t in stack.num_embeddings} for stack in p.stacks]
        for p in (place(0), place(1))
    ]
    # of a table cut into rows there is one row more, that stands for what lies elsewhere
    assert shapes[0] == [{"a": (4, 4)}, {"d": (9, 2)}, {"c": (2, 4)}]
    assert shapes[1] == [{"a": (3, 4), "b": (3, 4)}, {"d": (9, 2)}, {"c": (2, 4)}]
