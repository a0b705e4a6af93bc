"""Training on several ranks, put together again so that it can be held against one process."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.data.order import rank_slice
from fastdlrm.model.dlrm import DLRM
from fastdlrm.parallel.plan import (
    ShardingPlan,
    TablePlan,
    column_wise,
    data_parallel,
    row_wise,
    table_wise,
)
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.tensor_shard import TensorShard
from fastdlrm.parallel.world import World
from fastdlrm.train.config import TrainConfig
from fastdlrm.train.step import TrainStep
from tests.training import DIM, FEATURES, TABLES, make_model, pooling_of

State = dict[str, Tensor | TensorShard]


def make_plan(
    world_size: int, dims: Mapping[str, int] | None = None, **sharding: str
) -> ShardingPlan:
    """Tables a and b sharded as said; whole tables lie on the last rank. Those in dims are narrow."""
    ranks, dims = list(range(world_size)), dict(dims or {})
    makers = {
        "table_wise": lambda rows, dim: table_wise(rows, dim, ranks[-1]),
        "row_wise": lambda rows, dim: row_wise(rows, dim, ranks),
        "column_wise": lambda rows, dim: column_wise(rows, dim, ranks),
        "data_parallel": lambda rows, dim: data_parallel(),
    }
    tables: dict[str, TablePlan] = {
        name: makers[sharding[name]](rows, dims.get(name, DIM)) for name, rows in TABLES.items()
    }
    return ShardingPlan(
        world_size=world_size,
        embedding_dim=DIM,
        num_embeddings=dict(TABLES),
        tables=tables,
        table_dims=dims,
    )


class Case(NamedTuple):
    """A training to be done.

    Attributes:
        plan: Where the tables lie.
        config: How to train.
        batches: Global ones.
        model: Keywords of `make_model`.
    """

    plan: ShardingPlan
    config: TrainConfig
    batches: Sequence[Batch]
    model: Mapping[str, object] = {}


def train(case: Case, device: str = "cpu") -> tuple[list[float], State]:
    """On one rank: steps on its share of global batches; its losses and its state, on the CPU."""
    with World.of_environment(device) as world:
        return _train(case, world, device)


def train_all(cases: Sequence[Case]) -> list[tuple[list[float], State]]:
    """`train` for one case after the other, on the CPU: the ranks meet only once."""
    with World.of_environment() as world:
        return [_train(case, world, "cpu") for case in cases]


def _train(case: Case, world: World, device: str) -> tuple[list[float], State]:
    changes = dict(case.model)
    tables = ShardedTables(
        case.plan,
        FEATURES,
        world,
        pooling=pooling_of(changes.get("pooling", "sum")),
        dtype=changes.pop("table_dtype", torch.float32),
    )
    model = make_model(tables=tables, **changes)
    if device == "cuda":
        model = on_gpu(model, case.plan, world)
    step = TrainStep(model, case.config, world)
    losses = []
    for k, batch in enumerate(case.batches):
        start, stop = rank_slice(batch.num_samples, world.rank, world.size)
        own = own_part(batch, start, stop)
        losses.append(float(step(own, k, batch.num_samples)))
    step.close()
    groups = {
        "model": step.model.state_tensors(),
        "sparse": step.sparse_optimizer.state_tensors(),
        "dense": step.dense_optimizer.state_tensors(),
    }
    return losses, {
        f"{group}.{name}": _detached(part)
        for group, parts in groups.items()
        for name, part in parts.items()
    }


def own_part(batch: Batch, start: int, stop: int) -> Batch:
    """Some samples, in a buffer as the loader makes it where the batch has one."""
    part = batch.slice(start, stop)
    if batch.buffer is None:
        return part
    whole = Batch.allocate(stop - start, batch.dense.shape[1], batch.sparse.num_features)
    whole.sparse.ids.copy_(part.sparse.ids)
    whole.dense.copy_(part.dense)
    whole.labels.copy_(part.labels)
    return whole


def on_gpu(model: DLRM, plan: ShardingPlan, world: World) -> DLRM:
    """The same model on this rank's GPU: tables cannot be moved once they are placed."""
    old = model.tables
    new = ShardedTables(plan, FEATURES, world, device="cuda")
    for one, other in zip(old.placement.stacks, new.placement.stacks, strict=True):
        one_weight, other_weight = one.weight.detach(), other.weight.detach()
        other_weight.copy_(one_weight)
    model.tables = new
    for part in (model.bottom_mlp, model.interaction, model.top_mlp):
        if part is not None:
            part.cuda()
    return model


def whole(states: Sequence[State]) -> dict[str, Tensor]:
    """The states of all ranks as one; each number must be there, and equal where it is twice."""
    found: dict[str, Tensor] = {}
    for name in {name for state in states for name in state}:
        parts = [state[name] for state in states if name in state]
        shards = [part for part in parts if isinstance(part, TensorShard)]
        if not shards:
            assert all(torch.equal(part, parts[0]) for part in parts), name
            found[name] = parts[0]
            continue
        tensor = torch.full(shards[0].full_shape, torch.nan)
        for shard in shards:
            place = tuple(
                slice(start, start + length)
                for start, length in zip(shard.offsets, shard.tensor.shape, strict=True)
            )
            assert tensor[place].isnan().all() or torch.equal(tensor[place], shard.tensor), name
            tensor[place] = shard.tensor.float()
        assert not tensor.isnan().any(), name
        found[name] = tensor
    return found


def _detached(part: Tensor | TensorShard) -> Tensor | TensorShard:
    if isinstance(part, TensorShard):
        return TensorShard(part.tensor.cpu().clone(), part.full_shape, part.offsets, part.is_copy)
    return part.detach().cpu().clone()
