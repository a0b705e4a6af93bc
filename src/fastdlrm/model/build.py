"""Config, schema and encoding -> an initialised DLRM."""

import torch
from torch import nn

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import ConfigError
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.cross import CrossInteraction, CrossVectorInteraction
from fastdlrm.model.deep import DeepInteraction
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.factorization import FactorizationInteraction
from fastdlrm.model.interaction import (
    CatInteraction,
    DotInteraction,
    Interaction,
    ProjectionInteraction,
    Vectors,
)
from fastdlrm.model.layout import layout_of
from fastdlrm.model.lookup import Tables
from fastdlrm.model.mixed_tables import joined_stacks, width_groups
from fastdlrm.model.mlp import build_mlp
from fastdlrm.model.table_projection import build_projection


def build_dlrm(
    config: ModelConfig,
    schema: Schema,
    encoding: Encoding,
    seed: int,
    *,
    table_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tables: Tables | None = None,
) -> DLRM:
    """Make a model; the tables are drawn first, then in the order of computation.

    Args:
        config: Shape of the model.
        schema: Its features.
        encoding: Sizes of its tables.
        seed: Of all weights; the global random state is left alone.
        table_dtype: Of the tables' rows.
        device: Where it computes; one seed gives the same weights on every device.
        tables: To be drawn, where they are not simply this process's; None: `build_tables`.

    Raises:
        ConfigError: The config does not fit the schema.
    """
    require_fit(config, schema)
    generator = torch.Generator().manual_seed(seed)
    if tables is None:
        tables = build_tables(config, schema, encoding, table_dtype=table_dtype, device=device)
    draws = layout_of(config, schema, encoding).draws
    tables.initialise(config.init, generator, config.embedding_std, draws)
    return around_tables(config, schema, tables, generator, device)


def around_tables(
    config: ModelConfig,
    schema: Schema,
    tables: Tables,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> DLRM:
    """A model over tables that are there already.

    Args:
        config: Shape of the model; it fits the schema.
        schema: Its features.
        tables: As they are.
        generator: Of all other weights, on the CPU.
        device: Where it computes.
    """
    num_dense = len(schema.dense)
    bottom_mlp = None
    if num_dense:
        widths = config.bottom_mlp
        hidden, end = (widths, 0) if config.bottom_relu else (widths[:-1], widths[-1])
        bottom_mlp = build_mlp(
            num_dense,
            hidden,
            out_features=end,
            norm=config.norm,
            dropout=config.dropout,
            generator=generator,
        )
    projection = build_projection(config, schema, generator)
    interaction = build_interaction(config, vectors_of(config, schema), generator)
    top_mlp = build_mlp(
        interaction.width,
        config.top_mlp,
        out_features=1,
        norm=config.norm,
        dropout=config.dropout,
        generator=generator,
    )
    if interaction.is_logit:
        _begin_as_logit(bottom_mlp, top_mlp)
    return DLRM(
        tables,
        None if bottom_mlp is None else bottom_mlp.to(device),
        interaction.to(device),
        top_mlp.to(device),
        None if projection is None else projection.to(device),
    )


@torch.no_grad()
def _begin_as_logit(bottom_mlp: nn.Sequential | None, top_mlp: nn.Sequential) -> None:
    """What an interaction gives as a logit counts as it is, and linear dense features begin as 0.

    Weights as `build_mlp` draws them, for a hidden layer, would be logits of several units at the
    start, and factors so large that the tables' first steps would follow their noise. Behind a ReLU
    a weight of 0 would stay it.
    """
    output = top_mlp[-1]
    assert isinstance(output, nn.Linear)
    output.weight[:, 0] = 1
    if bottom_mlp is not None and isinstance(end := bottom_mlp[-1], nn.Linear):
        end.weight.zero_()
        end.bias.zero_()


def build_tables(
    config: ModelConfig,
    schema: Schema,
    encoding: Encoding,
    *,
    table_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_host: bool = False,
) -> Tables:
    """All tables in this process, not yet drawn.

    Args:
        config: Shape of the model.
        schema: Its features.
        encoding: Sizes of its tables.
        table_dtype: Of their rows.
        device: Where it computes.
        on_host: Whether a GPU's tables lie in page-locked host memory.
    """
    layout, D = layout_of(config, schema, encoding), config.embedding_dim
    groups = width_groups(layout.num_embeddings, layout.feature_tables, layout.dims, D)
    stacks = []
    for group in groups:
        stack = EmbeddingTables(
            group.num_embeddings,
            group.feature_tables,
            embedding_dim=group.width,
            pooling=layout.pooling,
            dtype=table_dtype,
            device="cpu" if on_host else device,
            pin=on_host,
        )
        stack.compute_on(device)
        if config.weighted_pooling == "learned":
            stack.learn_weights()
        stacks.append(stack)
    return layout.wrapped(joined_stacks(layout.num_embeddings, D, groups, stacks))


def vectors_of(config: ModelConfig, schema: Schema) -> Vectors:
    """The vectors of a sample, which the interaction joins."""
    return Vectors(len(schema.sparse), config.embedding_dim, bool(schema.dense))


def build_interaction(
    config: ModelConfig, vectors: Vectors, generator: torch.Generator | None = None
) -> Interaction:
    """The interaction that a config names.

    Args:
        config: Shape of the model.
        vectors: What is joined.
        generator: Of its weights, on the CPU; None: they are on no device and take no memory.
    """
    joined = _without_deep(config, vectors, generator)
    if not config.deep_mlp:
        return joined
    deep_mlp = build_mlp(
        vectors.width,
        config.deep_mlp,
        norm=config.norm,
        dropout=config.dropout,
        generator=generator,
    )
    return DeepInteraction(joined, config.deep_mlp, deep_mlp)


def _without_deep(
    config: ModelConfig, vectors: Vectors, generator: torch.Generator | None
) -> Interaction:
    if config.interaction == "dot":
        return DotInteraction(vectors, config.include_diagonal)
    if config.interaction == "cat":
        return CatInteraction(vectors)
    if config.interaction == "cross":
        return CrossInteraction(vectors, config.num_cross_layers, config.cross_rank, generator)
    if config.interaction == "cross_vector":
        return CrossVectorInteraction(vectors, config.num_cross_layers, generator)
    if config.interaction == "fm":
        return FactorizationInteraction(vectors)
    branches = config.projection_branch1, config.projection_branch2
    return ProjectionInteraction(vectors, branches, generator)


def undrawn_interaction(config: ModelConfig, schema: Schema) -> Interaction:
    """The interaction without numbers, to be asked for its width and its cost."""
    return build_interaction(config, vectors_of(config, schema))


def require_fit(config: ModelConfig, schema: Schema) -> None:
    """Check a config against the features of a dataset.

    Raises:
        ConfigError: The config does not fit the schema.
    """
    num_dense = len(schema.dense)
    num_vectors = len(schema.sparse) + bool(num_dense)
    names = [table.name for table in schema.tables]
    for where, named in (
        ("model.compression.tables", set(config.compression.tables)),
        ("model.table_pooling", set(config.table_pooling)),
        ("model.table_dims", set(config.table_dims)),
    ):
        if unknown := sorted(named - set(names)):
            raise ConfigError(
                f"{where}.{unknown[0]}: no such table; the dataset has {', '.join(names) or 'none'}"
            )
    if num_dense and not config.bottom_mlp:
        raise ConfigError(
            f"model.bottom_mlp is empty, the dataset has {num_dense} dense features; set "
            f"model.bottom_mlp = [{config.embedding_dim}], or wider layers before it"
        )
    if config.bottom_mlp and not num_dense:
        raise ConfigError(
            f"model.bottom_mlp is {list(config.bottom_mlp)}, the dataset has no dense feature; "
            "set model.bottom_mlp = []"
        )
    if config.interaction == "dot" and num_vectors < 2:
        raise ConfigError(
            f"model.interaction is 'dot' with {num_vectors} vector a sample (one a sparse feature, "
            "one for all dense features); 2 or more are needed: set model.interaction = 'cat'"
        )
