"""Stacked tables against separate ones: rows, pooled vectors, initialisation, views."""

import math

import numpy as np
import pytest
import torch

from fastdlrm.batch import SparseBatch
from fastdlrm.model import embedding
from fastdlrm.model.embedding import EmbeddingTables
from tests import oracles
from tests.recorder import Recorder

SIZES = {"user": 4, "item": 6}
FEATURES = ["item", "user", "item"]  # two features share a table; stack order is SIZES'


def make_tables(pooling: str | dict[str, str] = "sum") -> EmbeddingTables:
    tables = EmbeddingTables(SIZES, FEATURES, embedding_dim=3, pooling=pooling)
    tables.initialise("reference", torch.Generator().manual_seed(1))
    return tables


def jagged_batch(is_weighted: bool) -> SparseBatch:
    # B = 2; bags: item [5, 0] and [], user [3] and [1, 1], item [2] and [4, 5, 0]
    return SparseBatch(
        ids=torch.tensor([5, 0, 3, 1, 1, 2, 4, 5, 0], dtype=torch.int32),
        lengths=torch.tensor([2, 0, 1, 2, 1, 3], dtype=torch.int32),
        weights=torch.arange(1.0, 10.0) if is_weighted else None,
        num_features=3,
    )


def single_batch() -> SparseBatch:
    ids = torch.tensor([5, 0, 3, 1, 2, 4], dtype=torch.int32)
    return SparseBatch(ids=ids, lengths=None, weights=None, num_features=3)


def test_rows_by_hand() -> None:
    # user takes rows 0..3 of the stack, item rows 4..9
    tables = make_tables()
    assert tables.rows(single_batch()).tolist() == [9, 4, 3, 1, 6, 8]
    assert tables.rows(jagged_batch(False)).tolist() == [9, 4, 3, 1, 1, 6, 8, 9, 4]
    assert tables.rows(single_batch()).dtype == torch.int32


def test_rows_of_a_large_stack_are_int64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "INT32_ROWS", 9)  # the stack has 10 rows
    assert make_tables().rows(single_batch()).dtype == torch.int64


@pytest.mark.parametrize("pooling", ["sum", "mean", {"user": "mean", "item": "sum"}])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_bags_match_separate_tables(pooling: str | dict[str, str], is_weighted: bool) -> None:
    tables, batch = make_tables(pooling), jagged_batch(is_weighted)
    bags = [[[5, 0], []], [[3], [1, 1]], [[2], [4, 5, 0]]]
    weights = [[[1, 2], []], [[3], [4, 5]], [[6], [7, 8, 9]]]
    found = tables(batch)
    assert found.shape == (2, 3, 3)
    for f, name in enumerate(FEATURES):
        table = tables.table(name).double().numpy()
        rule = pooling if isinstance(pooling, str) else pooling[name]
        expected = oracles.pooled_lookup(table, bags[f], weights[f] if is_weighted else None, rule)
        np.testing.assert_allclose(found[:, f].detach(), expected, rtol=1e-5)


def test_single_ids_match_separate_tables() -> None:
    tables = make_tables()
    found = tables(single_batch())
    for f, ids in enumerate([[5, 0], [3, 1], [2, 4]]):
        assert torch.equal(found[:, f], tables.table(FEATURES[f])[ids])


def test_forward_is_differentiable() -> None:
    tables = make_tables()
    tables(single_batch())[:, 1].sum().backward()  # ids 3 and 1 of table user: rows 3 and 1
    assert tables.weight.grad is not None
    assert tables.weight.grad.sum(1).tolist() == [0, 3, 0, 3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 0), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)]
)
def test_pooling_weights_are_folded_into_their_rows(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rounding: float
) -> None:
    monkeypatch.setattr(embedding, "FOLDED_ROWS", 4)  # of 10 rows
    tables = EmbeddingTables(SIZES, FEATURES, embedding_dim=3, dtype=dtype)
    tables.initialise("normal", torch.Generator().manual_seed(0), 1.0)
    tables.learn_weights()
    assert tables.pooling_weight is not None
    assert tables.pooling_weight.tolist() == [1] * 10
    with torch.no_grad():
        tables.pooling_weight.copy_(torch.linspace(-1, 2, 10))
    assert {name: part.shape for name, part in tables.pooling_weights().items()} == {
        "user": (4,),
        "item": (6,),
    }
    pooled = tables(jagged_batch(True), torch.float32).detach()
    exact = tables.weight.detach().float() * tables.pooling_weight.detach().unsqueeze(1)
    tables.fold_weights()
    assert tables.pooling_weights() == {}
    found = tables.weight.detach()
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))
    torch.testing.assert_close(found.float(), exact, rtol=rounding, atol=2**-24)
    folded = tables(jagged_batch(True), torch.float32).detach()
    # weights of up to 9 on 3 numbers of about 1
    torch.testing.assert_close(folded, pooled, rtol=1e-5, atol=1e-5 + 100 * rounding)
    before = found.clone()
    tables.fold_weights()
    assert torch.equal(tables.weight.detach(), before)


def test_no_features() -> None:
    tables = EmbeddingTables({}, [], embedding_dim=3)
    none = torch.empty(0, dtype=torch.int32)
    batch = SparseBatch(ids=none, lengths=None, weights=None, num_features=0)
    assert tables(batch).shape == (0, 0, 3)


def test_table_is_a_view() -> None:
    tables = make_tables()
    tables.table("item")[0] = 7.0
    assert tables.weight[4].tolist() == [7, 7, 7]
    assert tables.table("item").shape == (6, 3)


def test_stacking_does_not_change_the_initial_numbers() -> None:
    stacked, generator = make_tables(), torch.Generator().manual_seed(1)
    for name, rows in SIZES.items():
        alone = EmbeddingTables({name: rows}, [name], embedding_dim=3)
        alone.initialise("reference", generator)
        assert torch.equal(alone.weight, stacked.table(name))


def test_reference_init_is_uniform_within_the_root_of_the_rows() -> None:
    tables = EmbeddingTables({"t": 400}, ["t"], embedding_dim=100)
    tables.initialise("reference", torch.Generator().manual_seed(0))
    bound = math.sqrt(1 / 400)
    # both signs; a uniform's standard deviation is bound / sqrt(3), its mean 0
    assert -bound <= tables.weight.min() < -0.99 * bound
    assert 0.99 * bound < tables.weight.max() <= bound
    assert tables.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(tables.weight.mean().item()) < 0.02 * bound


def test_normal_init_has_the_given_deviation() -> None:
    tables = EmbeddingTables({"t": 400}, ["t"], embedding_dim=100)
    tables.initialise("normal", torch.Generator().manual_seed(0), std=0.05)
    assert tables.weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert abs(tables.weight.mean().item()) < 0.001


def test_one_lookup_serves_all_tables() -> None:
    """The reference loops over the tables in Python; here more tables are no more operators."""
    counts = []
    for num_tables in (2, 9):
        names = [f"t{i}" for i in range(num_tables)]
        tables = EmbeddingTables(dict.fromkeys(names, 5), names, embedding_dim=3)
        ids = torch.zeros(4 * num_tables, dtype=torch.int32)
        batch = SparseBatch(ids=ids, lengths=None, weights=None, num_features=num_tables)
        tables(batch)  # whatever is made once is made
        with Recorder() as recorder:
            tables(batch)
        counts.append(len(recorder.names))
    assert counts[0] == counts[1] > 0


def test_lookup_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """The reference's quantised lookup prints a line a table a batch."""
    tables = make_tables()
    tables(single_batch())
    tables(jagged_batch(True))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_weighted_bags_of_tables_of_16_bits(pooling: str, dtype: torch.dtype) -> None:
    tables = EmbeddingTables({"t": 4}, ["t"], embedding_dim=3, pooling=pooling, dtype=dtype)
    tables.initialise("normal", torch.Generator().manual_seed(0), 1.0)
    bags, weights = [[0, 3, 3], [], [1]], [[0.5, 2.0, 0.25], [], [3.0]]
    batch = SparseBatch(
        ids=torch.tensor([0, 3, 3, 1], dtype=torch.int32),
        lengths=torch.tensor([3, 0, 1], dtype=torch.int32),
        weights=torch.tensor([0.5, 2.0, 0.25, 3.0]),
        num_features=1,
    )
    found = tables(batch, torch.float32).detach()[:, 0]
    exact = oracles.pooled_lookup(tables.table("t").double().numpy(), bags, weights, pooling)
    np.testing.assert_allclose(found, exact, rtol=2**-7, atol=1e-2)


def test_segments_are_the_features_where_tables_lie_in_their_order() -> None:
    ids = torch.tensor([0, 1, 2, 0, 1, 1], dtype=torch.int32)
    apart = EmbeddingTables({"a": 3, "b": 2}, ["a", "b"], embedding_dim=2)
    single = SparseBatch(ids=ids, lengths=None, weights=None, num_features=2)
    segments = apart.segments(single, None)
    assert segments is not None
    assert segments.tolist() == [0, 3, 6]
    lengths = torch.tensor([2, 0, 1, 3], dtype=torch.int32)
    bags = SparseBatch(ids=ids, lengths=lengths, weights=None, num_features=2)
    segments = apart.segments(bags, bags.offsets())
    assert segments is not None
    assert segments.tolist() == [0, 2, 6]
    for tables in (["b", "a"], ["a", "a"]):
        mixed = EmbeddingTables({"a": 3, "b": 2}, tables, embedding_dim=2)
        assert mixed.segments(single, None) is None
