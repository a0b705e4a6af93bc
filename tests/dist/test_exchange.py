"""What two ranks send each other, worked by hand."""

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.step_scalars import StepScalars
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.parallel.column_sums import ColumnSums
from fastdlrm.parallel.exchange import Gradient, JaggedExchange, StaticExchange
from fastdlrm.parallel.plan import (
    ShardingPlan,
    column_wise,
    data_parallel,
    row_wise,
    table_wise,
)
from fastdlrm.parallel.sharded import ShardedTables, look_up
from fastdlrm.parallel.tensor_shard import TensorShard
from fastdlrm.parallel.world import World
from fastdlrm.train.config import SparseOptimizerConfig
from fastdlrm.train.replicated_optimizer import ReplicatedOptimizer
from tests.dist.ranks import Ranks

# Row r of table a is (r, 10), of b (r, 20), of c (r, 30).
ROWS = {"a": 4, "b": 3, "c": 2}
PLAN = ShardingPlan(
    world_size=2,
    embedding_dim=2,
    num_embeddings=ROWS,
    tables={
        "a": row_wise(4, 2, [0, 1]),  # rows 0, 1 on rank 0; 2, 3 on rank 1
        "b": table_wise(3, 2, 1),
        "c": data_parallel(),
    },
)


def tables_of(world: World, plan: ShardingPlan = PLAN) -> ShardedTables:
    """Tables whose rows say where they come from."""
    tables = ShardedTables(plan, list(plan.num_embeddings), world)
    for name, part in tables.state_tensors().items():
        rows = torch.arange(float(plan.num_embeddings[name]))
        number = torch.full_like(rows, 10.0 * (1 + list(plan.num_embeddings).index(name)))
        whole = torch.stack([rows, number], 1)
        if isinstance(part, TensorShard):
            (row, column), (height, width) = part.offsets, part.tensor.shape
            part.tensor.copy_(whole[row : row + height, column : column + width])
        else:
            part.copy_(whole)
    return tables


def exchanged(
    exchange: StaticExchange | JaggedExchange, tables: ShardedTables, grad: Tensor
) -> dict[str, list]:
    """What arrives, what comes back, and the gradients that arrive, as lists."""
    arrived = [(part.ids.tolist(), part.lengths) for part in exchange.arrived]
    stacks = tables.placement.stacks
    exchange.send(
        [look_up(*pair, torch.float32) for pair in zip(stacks, exchange.arrived, strict=True)]
    )
    pooled = exchange.pooled(torch.float32)
    gradients = [gradient.wait().transpose(0, 1) for gradient in exchange.send_gradient(grad)]
    return {
        "ids": [ids for ids, _ in arrived],
        "lengths": [None if lengths is None else lengths.tolist() for _, lengths in arrived],
        "pooled": pooled.tolist(),
        "gradients": [gradient.tolist() for gradient in gradients],
    }


def _single() -> dict[str, list]:
    with World.of_environment() as world:
        tables = tables_of(world)
        # by feature a, b, c; two samples a rank
        ids = [[3, 0, 1, 2, 0, 1], [1, 2, 0, 0, 1, 1]][world.rank]
        sparse = SparseBatch(
            ids=torch.tensor(ids, dtype=torch.int32), lengths=None, weights=None, num_features=3
        )
        # sample s of rank r, feature f: (100 r + 10 s + f, 0)
        numbers = 100.0 * world.rank + torch.tensor([[0.0, 1, 2], [10, 11, 12]])
        grad = torch.stack([numbers, torch.zeros(2, 3)], 2)
        return exchanged(StaticExchange(tables.placement, sparse), tables, grad)


def test_single_ids(ranks: Ranks) -> None:
    zero, one = ranks.run(_single, 2)
    # Rank 0 owns rows 0, 1 of a; the rank's row 2 stands for what lies elsewhere. Asked for a by
    # rank 0: 3, 0; by rank 1: 1, 2. Then its own ids of c.
    assert zero["ids"] == [[2, 0, 1, 2], [0, 1]]
    # Rank 1 owns rows 2, 3 of a, and b. By rank 0: a 3, 0; b 1, 2; by rank 1: a 1, 2; b 0, 0.
    assert one["ids"] == [[1, 2, 1, 2, 2, 0, 0, 0], [1, 1]]
    assert zero["pooled"] == [[[3, 10], [1, 20], [0, 30]], [[0, 10], [2, 20], [1, 30]]]
    assert one["pooled"] == [[[1, 10], [0, 20], [1, 30]], [[2, 10], [0, 20], [1, 30]]]
    # Sample 1 of rank 0 (10) and sample 0 of rank 1 (100) read rows of rank 0.
    nothing = [0, 0]
    assert zero["gradients"] == [
        [[nothing, [10, 0]], [[100, 0], nothing]],
        [[[2, 0], [12, 0]]],
    ]
    assert one["gradients"] == [
        [
            [[0, 0], nothing],  # a of rank 0's samples: the gradient of sample 0 is 0
            [[1, 0], [11, 0]],  # b
            [nothing, [110, 0]],  # a of rank 1's
            [[101, 0], [111, 0]],  # b
        ],
        [[[102, 0], [112, 0]]],
    ]


def _bags() -> dict[str, list]:
    plan = ShardingPlan(
        world_size=2,
        embedding_dim=2,
        num_embeddings={"a": 4},
        tables={"a": row_wise(4, 2, [0, 1])},
    )
    with World.of_environment() as world:
        tables = tables_of(world, plan)
        # rank 0: bags (3, 0) and (1); rank 1: bag (2, 2)
        ids, lengths = [([3, 0, 1], [2, 1]), ([2, 2], [2])][world.rank]
        sparse = SparseBatch(
            ids=torch.tensor(ids, dtype=torch.int32),
            lengths=torch.tensor(lengths, dtype=torch.int32),
            weights=None,
            num_features=1,
        )
        grad = torch.tensor([[[1.0, 2]], [[3, 4]]] if world.rank == 0 else [[[5.0, 6]]])
        return exchanged(JaggedExchange(tables.placement, sparse, [2, 1]), tables, grad)


def test_bags_and_ranks_of_different_size(ranks: Ranks) -> None:
    """Rank 1 has one sample: an empty bag stands for its second one."""
    zero, one = ranks.run(_bags, 2)
    assert (zero["ids"], zero["lengths"]) == ([[0, 1], []], [[1, 1, 0, 0], None])
    assert (one["ids"], one["lengths"]) == ([[1, 0, 0], []], [[1, 0, 2, 0], None])
    assert zero["pooled"] == [[[3 + 0, 20]], [[1, 10]]]
    assert one["pooled"] == [[[2 + 2, 20]]]
    arrived = [[[1, 2], [3, 4]], [[5, 6], [0, 0]]]  # rank 0's two samples, rank 1's one
    assert [zero["gradients"][0], one["gradients"][0]] == [arrived, arrived]


def _sum_columns() -> dict[str, list[float]]:
    plan = ShardingPlan(
        world_size=2,
        embedding_dim=2,
        num_embeddings={"t": 5, "u": 5, "v": 5},
        tables={
            "t": column_wise(5, 2, [1, 0]),
            "u": column_wise(5, 2, [0]),
            "v": table_wise(5, 2, 1),
        },
    )
    with World.of_environment() as world:
        parts = {"t": torch.tensor([1.0, 2.0]), "u": torch.tensor([4.0])}
        if world.rank == 1:
            parts = {"v": torch.tensor([5.0, 6.0]), "t": torch.tensor([10.0, 20.0])}
        sums = ColumnSums(plan, world)
        assert sums
        return {name: part.tolist() for name, part in sums(parts, torch.zeros(0)).items()}


def test_sums_over_columns_on_several_ranks(ranks: Ranks) -> None:
    zero, one = ranks.run(_sum_columns, 2)
    assert zero == {"t": [11, 22], "u": [4]}
    assert one == {"t": [11, 22], "v": [5, 6]}


def test_whole_tables_have_no_sums() -> None:
    assert not ColumnSums(PLAN, World(0, 2))


def _update(l2: float) -> tuple[float, list[float]]:
    with World.of_environment() as world:
        tables = EmbeddingTables({"c": 3}, ["c"], embedding_dim=1)
        weight = tables.weight.detach()
        weight.fill_(1.0)
        config = SparseOptimizerConfig(name="sgd", learning_rate=1.0, l2=l2)
        optimizer = ReplicatedOptimizer(config, tables, world)
        # rank 0: row 0, gradient 1; rank 1: rows 0 and 2, gradients 2 and 4
        ids, values = [([0], [1.0]), ([0, 2], [2.0, 4.0])][world.rank]
        sparse = SparseBatch(
            ids=torch.tensor(ids, dtype=torch.int32), lengths=None, weights=None, num_features=1
        )
        optimizer.take(optimizer.look_up(sparse), Gradient(torch.tensor(values).view(-1, 1, 1)))
        optimizer.reduce()
        square = float(optimizer.squared_norm())
        optimizer.apply(StepScalars(0.5).tensor(weight.device))
        optimizer.reduce()  # nothing is accumulated any more: no row moves
        optimizer.apply(StepScalars(0.5).tensor(weight.device))
        return square, weight.flatten().tolist()


@pytest.mark.parametrize(
    ("l2", "expected"),
    [
        (0.0, [1 - 0.5 * 3, 1, 1 - 0.5 * 4]),
        (2.0, [1 - 0.5 * (3 + 2), 1, 1 - 0.5 * (4 + 2)]),  # row 1, that nobody read, stays
    ],
)
def test_replicated_tables_sum_all_ranks(ranks: Ranks, l2: float, expected: list[float]) -> None:
    assert ranks.run(_update, 2, l2) == [(3.0**2 + 4.0**2, expected)] * 2
