"""Kernels against the oracles over drawn shapes: one sample, one feature, no ids, repeated ids."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.interaction import (
    cat_interaction,
    define_dot_interaction,
    define_dot_interaction_backward,
    dot_interaction,
    dot_interaction_backward,
    dot_interaction_width,
)
from fastdlrm.kernels.lookup import pooled_lookup
from fastdlrm.kernels.row_gradient import row_gradient, row_order
from fastdlrm.model.embedding import EmbeddingTables
from tests import oracles

NUM_ROWS = 5
FEW = settings(max_examples=60, deadline=None)
BAGS = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=4), min_size=1, max_size=6)
POOLING = st.sampled_from(["sum", "mean"])
DIM = st.integers(1, 5)
SEED = st.integers(0, 2**16)


def jagged(bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = torch.tensor([row for bag in bags for row in bag], dtype=torch.int32)
    lengths = torch.tensor([0, *(len(bag) for bag in bags)])
    return rows, lengths.cumsum(0)


def draw_weights(rng: np.random.Generator, bags: list[list[int]]) -> list[list[float]]:
    return [rng.normal(size=len(bag)).tolist() for bag in bags]


@FEW
@given(bags=BAGS, pooling=POOLING, dim=DIM, is_weighted=st.booleans(), seed=SEED)
def test_lookup_and_its_row_gradient(
    bags: list[list[int]], pooling: str, dim: int, is_weighted: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table, grad = rng.normal(size=(NUM_ROWS, dim)), rng.normal(size=(len(bags), dim))
    bag_weights = draw_weights(rng, bags) if is_weighted else None
    rows, offsets = jagged(bags)
    weights = None
    if bag_weights is not None:
        weights = torch.tensor([w for bag in bag_weights for w in bag], dtype=torch.float64)
    found = pooled_lookup(torch.from_numpy(table), rows, offsets, weights, pooling)
    expected = oracles.pooled_lookup(table, bags, bag_weights, pooling)
    np.testing.assert_allclose(found, expected, atol=1e-12)

    order = row_order(rows, offsets, weights, pooling)
    gradient = row_gradient(torch.from_numpy(grad), order)
    by_row = oracles.row_gradient(grad, bags, bag_weights, pooling)
    assert gradient.rows.tolist() == sorted(by_row)
    for row, values in zip(gradient.rows.tolist(), gradient.values, strict=True):
        np.testing.assert_allclose(values, by_row[row], atol=1e-12)


@FEW
@given(rows=st.lists(st.integers(0, NUM_ROWS - 1), max_size=12), dim=DIM, is_weighted=st.booleans())
def test_single_ids_are_bags_of_one(rows: list[int], dim: int, is_weighted: bool) -> None:
    table, ids = torch.randn(NUM_ROWS, dim), torch.tensor(rows, dtype=torch.int32)
    offsets, grad = torch.arange(len(rows) + 1), torch.randn(len(rows), dim)
    weights = torch.rand(len(rows)) if is_weighted else None
    torch.testing.assert_close(
        pooled_lookup(table, ids, None, weights), pooled_lookup(table, ids, offsets, weights)
    )
    one, other = (row_gradient(grad, row_order(ids, o, weights)) for o in (None, offsets))
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.values, other.values)


@FEW
@given(
    num_samples=st.integers(1, 4),
    num_features=st.integers(1, 6),
    dim=DIM,
    has_dense=st.booleans(),
    include_diagonal=st.booleans(),
    seed=SEED,
)
def test_interactions(
    num_samples: int,
    num_features: int,
    dim: int,
    has_dense: bool,
    include_diagonal: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    pooled = rng.normal(size=(num_samples, num_features, dim))
    dense = rng.normal(size=(num_samples, dim)) if has_dense else None
    vector = None if dense is None else torch.from_numpy(dense)
    found = cat_interaction(vector, torch.from_numpy(pooled))
    np.testing.assert_allclose(found, oracles.cat_interaction(dense, pooled))
    if num_features + has_dense > 1 or include_diagonal:
        found = dot_interaction(vector, torch.from_numpy(pooled), include_diagonal)
        expected = oracles.dot_interaction(dense, pooled, include_diagonal)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@FEW
@given(
    num_samples=st.integers(1, 4),
    feature_tables=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    dim=DIM,
    seed=SEED,
)
def test_stacked_tables_are_separate_tables(
    num_samples: int, feature_tables: list[int], dim: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    names = [f"t{t}" for t in feature_tables]
    tables = EmbeddingTables({"t0": 1, "t1": 2, "t2": 7}, names, embedding_dim=dim)
    tables.initialise("reference", torch.Generator().manual_seed(seed))
    bags = [
        [rng.integers(0, tables.num_embeddings[t], rng.integers(0, 4)).tolist()] * num_samples
        for t in names
    ]
    flat = [bag for feature in bags for bag in feature]
    batch = SparseBatch(
        ids=torch.tensor([i for bag in flat for i in bag], dtype=torch.int32),
        lengths=torch.tensor([len(bag) for bag in flat], dtype=torch.int32),
        weights=None,
        num_features=len(names),
    )
    found = tables(batch).detach()
    for f, name in enumerate(names):
        expected = oracles.pooled_lookup(tables.table(name).double().numpy(), bags[f])
        np.testing.assert_allclose(found[:, f], expected, rtol=1e-5, atol=1e-6)


@FEW
@given(
    num_samples=st.sampled_from([1, 5, 40]),
    num_features=st.integers(1, 9),
    dim=st.sampled_from([1, 6, 16, 33]),
    has_dense=st.booleans(),
    include_diagonal=st.booleans(),
    padding=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_interaction_on_the_cpu_is_the_definition(
    num_samples: int,
    num_features: int,
    dim: int,
    has_dense: bool,
    include_diagonal: bool,
    padding: int,
    dtype: torch.dtype,
) -> None:
    if num_features + has_dense < 2 and not include_diagonal:
        return
    pooled = torch.randn(num_features, num_samples, dim).to(dtype).transpose(0, 1)
    dense = torch.randn(num_samples, dim).to(dtype) if has_dense else None
    natural = dot_interaction_width(num_features, dim, has_dense, include_diagonal)
    width = natural + padding if padding else 0
    # float32: sums of up to 33 products of normal numbers in another order; bfloat16: products
    # are summed in float32 here, and rounded once, to 8 bits
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    found = dot_interaction(dense, pooled, include_diagonal, width)
    expected = define_dot_interaction(dense, pooled, include_diagonal, width)
    torch.testing.assert_close(found, expected, **near)
    grad = torch.randn_like(expected)
    relu = bool(padding % 2)
    grads = dot_interaction_backward(grad, dense, pooled, include_diagonal, relu=relu)
    grad_dense, grad_pooled = define_dot_interaction_backward(
        grad, dense, pooled, include_diagonal, relu
    )
    torch.testing.assert_close(grads[1], grad_pooled, **near)
    assert grads[1].transpose(0, 1).is_contiguous()
    if grads[0] is not None:
        torch.testing.assert_close(grads[0], grad_dense, **near)
