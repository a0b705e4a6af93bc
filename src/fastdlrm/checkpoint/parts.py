"""The parts of one of our models by the names that `fastdlrm.checkpoint.naming` gives them."""

from collections.abc import Sequence

from torch import Tensor, nn

from fastdlrm.checkpoint.naming import BRANCHES, CROSS, LINEAR, Depths, NamingName, triangle_columns
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import CheckpointError
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.cross import CrossInteraction
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.interaction import ProjectionInteraction
from fastdlrm.model.mlp import layers_of

FIRST_TOP_WEIGHT = "top_mlp.0.weight"


def tables_in_order(schema: Schema, naming: NamingName) -> list[str]:
    """Tables in the order in which a program of that naming has them.

    Raises:
        CheckpointError: The program cannot have these features in this order.
    """
    used = [feature.table for feature in schema.sparse]
    tables = list(dict.fromkeys(used))
    if naming == "reference" and len(tables) < len(used):
        shared = next(table for table in tables if used.count(table) > 1)
        raise CheckpointError(
            f"table {shared!r} is shared by {used.count(shared)} features; dlrm_s_pytorch has a "
            "table for each: use the naming torchrec, which shares tables too"
        )
    if sorted(used, key=tables.index) != used:
        raise CheckpointError(
            f"features lie in the order of tables {used}; TorchRec has all features of a table "
            "side by side: declare those of one table together"
        )
    return tables


def part_names(model: DLRM, schema: Schema, naming: NamingName) -> dict[str, str]:
    """The name in `DLRM.state_tensors` of each part of a model.

    Args:
        model: Its tables are all in this process.
        schema: Its features.
        naming: Whose order of tables counts.

    Raises:
        CheckpointError: A tensor is no such part, or the tables cannot be ordered so.
    """
    tables = tables_in_order(schema, naming)
    state = model.state_tensors()
    names: dict[str, str] = {}
    for k, table in enumerate(tables):
        kinds = [
            kind for kind in ("", ".quotient", ".remainder") if f"tables.{table}{kind}" in state
        ]
        names |= {f"tables.{k}{kind}": f"tables.{table}{kind}" for kind in kinds}
        if (weights := f"pooling_weights.{table}") in state and naming == "reference":
            names[f"tables.{k}.pooling_weight"] = weights
    mlps = {"bottom_mlp": model.bottom_mlp, "top_mlp": model.top_mlp}
    if isinstance(model.interaction, ProjectionInteraction):
        mlps |= {f"interaction.{name}": getattr(model.interaction, name) for name in BRANCHES}
    for name, mlp in mlps.items():
        linear = (i for i, layer in enumerate(layers_of(mlp)) if isinstance(layer, nn.Linear))
        for k, i in enumerate(linear):
            names |= {f"{name}.{k}.{kind}": f"{name}.{i}.{kind}" for kind in LINEAR}
    if isinstance(model.interaction, CrossInteraction):
        for k in range(len(model.interaction.layers)):
            for kind in CROSS:
                names[f"interaction.layers.{k}.{kind}"] = f"interaction.layers.{k}.{kind}"
    placed = set(names.values())
    for name in (name for name in state if name not in placed):
        raise CheckpointError(
            f"the model has {name!r}, for which neither dlrm_s_pytorch nor TorchRec's DLRM has a "
            "place; they have tables (the first also of quotient and remainder), linear layers, "
            "and the second cross layers or projections"
        )
    return names


def parts_of(model: DLRM, schema: Schema, naming: NamingName) -> dict[str, Tensor]:
    """A model's live tensors by part.

    Args:
        model: As for `part_names`; so the others.
        schema: Its features.
        naming: Whose order of tables counts.

    Raises:
        CheckpointError: As `part_names`.
    """
    state = model.state_tensors()
    return {part: state[name] for part, name in part_names(model, schema, naming).items()}


def depths_of(parts: Sequence[str], tables: Sequence[str]) -> Depths:
    """How many of each part there are.

    Args:
        parts: Names of all.
        tables: A name each.
    """
    bottom, top, first, second = (
        sum(name.startswith(f"{part}.") and name.endswith(".weight") for name in parts)
        for part in ("bottom_mlp", "top_mlp", *(f"interaction.{branch}" for branch in BRANCHES))
    )
    cross = sum(name.endswith(".v") for name in parts)
    divided = frozenset(int(name.split(".")[1]) for name in parts if name.endswith(".quotient"))
    weighted = any(name.endswith(".pooling_weight") for name in parts)
    return Depths(tuple(tables), bottom, top, cross, (first, second), divided, weighted)


def columns_of(config: ModelConfig, schema: Schema, naming: NamingName) -> Tensor | None:
    """Which column of the other program's first top layer each of ours is; None: the same one."""
    if naming == "reference" or config.interaction != "dot":
        return None
    return triangle_columns(len(schema.sparse) + 1, config.embedding_dim)
