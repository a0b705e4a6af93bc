"""A run's rule for the widths of its tables, worked out for the tables that it has."""

import msgspec

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import ConfigError
from fastdlrm.model.layout import layout_of, table_sizes
from fastdlrm.model.mixed_dims import Solution, solve
from fastdlrm.parallel.footprint import TABLE_BYTES
from fastdlrm.train.recipe import Recipe


def with_table_dims(recipe: Recipe, schema: Schema, encoding: Encoding) -> Recipe:
    """The config with the columns of every table that model.mixed_dims is about written out.

    Args:
        recipe: A run's config; without that section, or worked out already, it stays as it is.
        schema: Its features.
        encoding: Sizes of its tables.

    Raises:
        ConfigError: Some columns are set, or no columns keep to the budget.
    """
    solution, given = _solution(recipe, schema, encoding), recipe.model.table_dims
    if solution is None or given == solution.dims:
        return recipe
    dims = solution.dims
    if given:
        table = next(t for t in sorted(given.keys() | dims.keys()) if given.get(t) != dims.get(t))
        raise ConfigError(
            f"model.table_dims.{table} is {given.get(table)}, model.mixed_dims makes it "
            f"{dims.get(table)}; leave one of the two out"
        )
    model = msgspec.structs.replace(recipe.model, table_dims=dims)
    return msgspec.structs.replace(recipe, model=model)


def describe_mixed_dims(recipe: Recipe, schema: Schema, encoding: Encoding) -> list[str]:
    """What model.mixed_dims comes to, in one line; none without it."""
    solution, config = _solution(recipe, schema, encoding), recipe.model.mixed_dims
    if solution is None or config is None:
        return []
    budget = "" if config.budget_bytes is None else f" for {config.budget_bytes:,} bytes or fewer"
    columns = ", ".join(f"{table} {dim}" for table, dim in solution.dims.items())
    return [
        f"mixed dims: alpha {solution.alpha:.6g}{budget}: {solution.num_bytes:,} bytes; columns: "
        f"{columns}"
    ]


def _solution(recipe: Recipe, schema: Schema, encoding: Encoding) -> Solution | None:
    """Of the tables that are not compressed; None without model.mixed_dims."""
    model = recipe.model
    if model.mixed_dims is None:
        return None
    held = layout_of(
        msgspec.structs.replace(model, mixed_dims=None, table_dims={}), schema, encoding
    ).num_embeddings
    sizes = {table: rows for table, rows in table_sizes(schema, encoding).items() if table in held}
    return solve(
        model.mixed_dims, sizes, model.embedding_dim, TABLE_BYTES[recipe.train.table_dtype]
    )
