"""A run's config and data -> the numbers the planner works with.

Shapes: B sampled rows, F sparse features, V vectors a sample, D embedding dim.
"""

import numpy as np
from numpy.typing import NDArray

from fastdlrm.batch import SparseBatch
from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError
from fastdlrm.model.build import require_fit, undrawn_interaction
from fastdlrm.model.interaction import Interaction
from fastdlrm.model.layout import Layout, layout_of
from fastdlrm.model.table_projection import TableProjection, build_projection
from fastdlrm.parallel.workload import Feature, Workload
from fastdlrm.parallel.workload import Interaction as JointWork
from fastdlrm.train.dims import with_table_dims
from fastdlrm.train.recipe import Recipe

SAMPLED_ROWS = 2**16
"""Of train, evenly spread: their ids stand for all."""


def workload_of(recipe: Recipe, dataset: Dataset) -> Workload:
    """Read sizes from a dataset, and bags' lengths and ids' skew from a sample of its train rows.

    Args:
        recipe: The run's config; a step counts as one batch, gradient accumulation left out.
        dataset: What it trains on.

    Raises:
        ConfigError: The model does not fit the dataset, or the tables are to lie in host memory.
        DataError: The dataset has no train split.
    """
    schema, encoding = dataset.schema, dataset.manifest.encoding
    require_fit(recipe.model, schema)
    recipe = with_table_dims(recipe, schema, encoding)
    train = recipe.train
    if train.table_placement == "host":
        raise ConfigError(
            "train.table_placement is 'host': tables are planned on the ranks' own memory only; "
            "set train.table_placement = 'device'"
        )
    rows = dataset.split("train")
    count = min(SAMPLED_ROWS, len(rows))
    sample = rows.batch(np.arange(count, dtype=np.int64) * len(rows) // count).sparse
    return workload(recipe, schema, encoding, sample)


def workload(recipe: Recipe, schema: Schema, encoding: Encoding, sample: SparseBatch) -> Workload:
    """`workload_of` a sample at hand.

    Args:
        recipe: The run's config.
        schema: Its features.
        encoding: Sizes of its tables.
        sample: At least one of its samples.
    """
    train, model = recipe.train, recipe.model
    N, interaction = len(schema.dense), undrawn_interaction(model, schema)
    layout = layout_of(model, schema, encoding)
    return Workload(
        num_embeddings=layout.num_embeddings,
        features=_features(layout, schema, sample),
        embedding_dim=model.embedding_dim,
        table_dims=layout.narrow_dims,
        bottom_mlp=(N, *model.bottom_mlp) if N else (),
        top_mlp=(interaction.width, *model.top_mlp, 1),
        interaction=joint_work(interaction, build_projection(model, schema, None)),
        global_batch_size=train.global_batch_size,
        precision=train.precision,
        table_dtype=train.table_dtype,
        exchange_dtype=train.exchange_dtype,
        dense_optimizer=train.dense_optimizer.name,
        sparse_optimizer=train.sparse_optimizer.name,
        learns_weights=model.weighted_pooling == "learned",
    )


def _features(layout: Layout, schema: Schema, sample: SparseBatch) -> tuple[Feature, ...]:
    """What is looked up: the sparse features, or their parts where tables are compressed.

    A bag whose ids are looked up one by one counts as a bag all the same.
    """
    B, is_bag = sample.num_samples, [feature.bag for feature in schema.sparse]
    if layout.compression is not None:
        sample, is_bag = (
            layout.compression.lower(sample).sparse,
            layout.compression.of_parts(is_bag),
        )
    looked_up = zip(layout.feature_tables, _ids_by_feature(sample), is_bag, strict=True)
    return tuple(
        Feature(table=table, ids_per_sample=len(ids) / B, is_bag=bag, shares=shares_of(ids))
        for table, ids, bag in looked_up
    )


def joint_work(interaction: Interaction, projection: TableProjection | None = None) -> JointWork:
    """What an interaction takes, as the planner has it, and what projects vectors before it."""
    cost, num_parameters, flop, kept = interaction.cost(), interaction.num_parameters, 0.0, 0
    if projection is not None:
        vectors = interaction.vectors
        num_parameters += projection.num_parameters
        flop, kept = 2.0 * projection.num_products, 2 * vectors.num_features * vectors.dim
    return JointWork(
        flop=cost.flop + flop, num_parameters=num_parameters, num_kept=cost.num_kept + kept
    )


def _ids_by_feature(sparse: SparseBatch) -> list[NDArray[np.int64]]:
    """The ids of each feature, of all samples."""
    if sparse.num_features == 0:
        return []
    starts = sparse.offsets()[:: sparse.num_samples].numpy()
    return np.split(sparse.ids.numpy().astype(np.int64), starts[1:-1])


def shares_of(ids: NDArray[np.int64]) -> tuple[float, ...]:
    """Share of the ids in rows 2^k - 1 .. 2^(k+1) - 2, by k; none of no ids."""
    if not len(ids):
        return ()
    exponents = np.frexp(ids + 1.0)[1] - 1
    return tuple((np.bincount(exponents) / len(ids)).tolist())
