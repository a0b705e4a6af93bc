"""A run's tables on several ranks: where they lie, and making them."""

from pathlib import Path

import torch

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import ConfigError
from fastdlrm.model.build import feature_tables, table_sizes
from fastdlrm.parallel.plan import ShardingPlan, read_plan, round_robin
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.world import World
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import TABLE_DTYPES, Run


def sharding_plan(
    recipe: Recipe, schema: Schema, encoding: Encoding, world: World, path: Path | None = None
) -> ShardingPlan | None:
    """Where the tables of a run lie.

    Args:
        recipe: The run's config.
        schema: Its features.
        encoding: Sizes of its tables.
        world: The ranks.
        path: A plan's file; None: a plan is made.

    Returns:
        None for a single rank without a plan.

    Raises:
        ConfigError: The config asks for what several ranks cannot do.
        PlanError: The plan does not fit the model or the ranks.
    """
    if world.size == 1 and path is None:
        return None
    if recipe.model.norm == "batch":
        raise ConfigError(
            f"model.norm is 'batch' with {world.size} ranks: each would normalise by its own "
            "samples; set model.norm = 'layer' or 'none'"
        )
    if recipe.train.table_placement == "host":
        raise ConfigError(
            f"train.table_placement is 'host' with {world.size} ranks; set it to 'device': the "
            "ranks share the tables"
        )
    sizes, D = table_sizes(schema, encoding), recipe.model.embedding_dim
    plan = round_robin(sizes, D, world.size) if path is None else read_plan(path)
    plan.require_fit(sizes, D, world.size)
    return plan


def sharded_tables(
    run: Run, plan: ShardingPlan, world: World, device: torch.device
) -> ShardedTables:
    """This rank's part of a run's tables, not yet drawn."""
    recipe = run.recipe
    return ShardedTables(
        plan,
        feature_tables(run.manifest.schema),
        world,
        pooling=recipe.model.pooling,
        dtype=TABLE_DTYPES[recipe.train.table_dtype],
        device=device,
    )
