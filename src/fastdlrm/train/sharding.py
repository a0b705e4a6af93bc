"""A run's tables on several ranks: where they lie, what that costs, and making them."""

from pathlib import Path
from typing import NamedTuple

import torch

from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError
from fastdlrm.model.layout import layout_of
from fastdlrm.model.lookup import Tables
from fastdlrm.parallel.measure import measure_topology
from fastdlrm.parallel.plan import ShardingPlan, read_plan
from fastdlrm.parallel.planner import make_plan
from fastdlrm.parallel.prediction import Prediction, predict
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.topology import Topology, card_topology, named_topology
from fastdlrm.parallel.world import World
from fastdlrm.train.dims import with_table_dims
from fastdlrm.train.memory import MemoryItem, Place
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import TABLE_DTYPES, Run
from fastdlrm.train.workload import workload_of


class Sharding(NamedTuple):
    """Where the tables of a run lie, and what a step is predicted to cost."""

    plan: ShardingPlan
    prediction: Prediction


def shard(
    recipe: Recipe,
    dataset: Dataset,
    world: World,
    device: torch.device,
    path: Path | None = None,
) -> Sharding | None:
    """Place a run's tables; all ranks call it.

    Args:
        recipe: The run's config.
        dataset: What it trains on.
        world: The ranks.
        device: Where they compute.
        path: A plan's file; None: a plan is made for this machine.

    Returns:
        None for a single rank without a plan.

    Raises:
        ConfigError: The config asks for what several ranks cannot do.
        PlanError: The plan does not fit the model or the ranks, or no plan fits their memory.
    """
    if world.size == 1 and path is None:
        return None
    with world.alike():
        if recipe.model.norm == "batch":
            raise ConfigError(
                f"model.norm is 'batch' with {world.size} ranks: each would normalise by its own "
                "samples; set model.norm = 'layer' or 'none'"
            )
        work = workload_of(recipe, dataset)
        layout = layout_of(
            with_table_dims(recipe, dataset.schema, dataset.manifest.encoding).model,
            dataset.schema,
            dataset.manifest.encoding,
        )
    topology = _topology(world, device)

    def decide() -> Sharding:
        if path is None:
            plan = make_plan(work, topology, world.size)
        else:
            plan = read_plan(path)
            D = recipe.model.embedding_dim
            plan.require_fit(layout.num_embeddings, D, world.size, layout.narrow_dims)
        return Sharding(plan, predict(plan, work, topology))

    return world.on_first(decide)


def sharded_tables(run: Run, plan: ShardingPlan, world: World, device: torch.device) -> Tables:
    """This rank's part of a run's tables, not yet drawn."""
    recipe = run.recipe
    layout = layout_of(recipe.model, run.manifest.schema, run.manifest.encoding)
    tables = ShardedTables(
        plan,
        layout.feature_tables,
        world,
        pooling=layout.pooling,
        dtype=TABLE_DTYPES[recipe.train.table_dtype],
        device=device,
    )
    if recipe.model.weighted_pooling == "learned":
        tables.learn_weights()
    return layout.wrapped(tables)


def rank_memory(prediction: Prediction, rank: int, device: torch.device) -> list[MemoryItem]:
    """What a rank will hold, as `memory_plan` says it of a single process."""
    place: Place = "GPU" if device.type == "cuda" else "host"
    cost = prediction.ranks[rank]
    items = [
        MemoryItem("tables", place, cost.table_bytes),
        MemoryItem("tables' optimizer", place, cost.state_bytes),
        MemoryItem("MLPs and their optimizer", place, cost.dense_bytes),
        MemoryItem("activations, batches and order of ids", place, cost.activation_bytes),
        MemoryItem("on the way between ranks", place, cost.buffer_bytes),
    ]
    copied = cost.table_bytes + cost.state_bytes + cost.dense_bytes // 2
    return [*items, MemoryItem("checkpoint being written", "host", copied)]


def _topology(world: World, device: torch.device) -> Topology:
    """This machine: by the name of its card where that is known, else measured."""
    if device.type == "cpu":
        return named_topology("cpu")
    known = card_topology(torch.cuda.get_device_name(device), world.size, world.local_size)
    return known or measure_topology(world, device)
