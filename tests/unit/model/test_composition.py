"""Ids of parts by plain integers, and what joined vectors are worth before training."""

import math

import pytest
import torch

from fastdlrm.contracts.hashing import mix
from fastdlrm.model.composition import Composition, hashed, hashed_rows, plain, quotient_remainder
from fastdlrm.model.embedding import EmbeddingTables

IDS = [0, 1, 2, 3, 4, 39_999_999, 2**24 + 1, 2**31 - 1, 2**40 + 3]


def test_quotients_are_of_integers() -> None:
    """A float32 quotient of 39,999,999 and 4 is 10,000,000, a row behind the last."""
    made = quotient_remainder("t", 40_000_000, 4, "add")
    assert made.num_embeddings == {"t.quotient": 10_000_000, "t.remainder": 4}
    for dtype in (torch.int32, torch.int64):
        quotients, remainders = made.ids(torch.tensor([39_999_999], dtype=dtype))
        assert (quotients.item(), remainders.item()) == (9_999_999, 3)
        assert quotients.dtype == remainders.dtype == dtype
    quotients, remainders = made.ids(torch.tensor(IDS))
    assert quotients.tolist() == [i // 4 for i in IDS]
    assert remainders.tolist() == [i % 4 for i in IDS]


def test_the_last_quotient_may_be_of_fewer_ids() -> None:
    assert quotient_remainder("t", 9, 4, "add").num_embeddings["t.quotient"] == 3  # 0-3, 4-7, 8


@pytest.mark.parametrize("function", [0, 1, 7])
def test_hashes_by_plain_integers(function: int) -> None:
    found = hashed_rows(torch.tensor(IDS), function, 1013)
    assert found.tolist() == [(mix(i ^ mix(function + 1)) >> 1) % 1013 for i in IDS]


def test_functions_are_independent() -> None:
    """Of 20,000 ids in 100 rows: every pair of rows as often as every other, within 5 sigma."""
    made = hashed("t", 20_000, 100, 2)
    first, second = made.ids(torch.arange(20_000, dtype=torch.int32))
    assert first.dtype == torch.int32
    pairs = torch.bincount(first * 100 + second, minlength=10_000).double()
    # chi-square with 9,999 degrees of freedom: mean 9,999, standard deviation sqrt(2 * 9,999)
    chi_square = float(((pairs - 2) ** 2 / 2).sum())
    assert abs(chi_square - 9_999) < 5 * math.sqrt(2 * 9_999)


def vectors(made: Composition, num_ids: int, init: str) -> torch.Tensor:
    """Of all ids, as they begin, shape (num_ids, 50)."""
    tables = EmbeddingTables(made.num_embeddings, [], embedding_dim=50)
    tables.initialise(init, torch.Generator().manual_seed(3), 0.2, made.draws)
    ids = made.ids(torch.arange(num_ids))
    parts = [tables.table(name)[part] for name, part in zip(made.parts, ids, strict=True)]
    return made.join(parts)


MADE = {
    "hash": lambda n: hashed("t", n, n // 2, 3),
    "add": lambda n: quotient_remainder("t", n, 40, "add"),
    "mult": lambda n: quotient_remainder("t", n, 40, "mult"),
    "concat": lambda n: quotient_remainder("t", n, 40, "concat"),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("init", ["reference", "normal"])
def test_joined_vectors_begin_as_plain_ones(kind: str, init: str) -> None:
    """Mean 0 and the variance of U(+-sqrt(1 / n)), 1 / (3 n), or of N(0, 0.2^2)."""
    n = 4000
    found = vectors(MADE[kind](n), n, init)
    variance = 1 / (3 * n) if init == "reference" else 0.04
    assert float(found.var()) == pytest.approx(variance, rel=0.1)
    assert abs(float(found.mean())) < 0.1 * math.sqrt(variance)


@pytest.mark.parametrize("init", ["reference", "normal"])
def test_a_product_begins_with_the_very_distribution(init: str) -> None:
    """Sorted, its numbers are those of a plain table up to sampling; neighbours are unrelated."""
    n = 4000
    found = vectors(MADE["mult"](n), n, init)
    expected = vectors(plain("t", n), n, init)
    scale = float(expected.std())
    quantiles = torch.linspace(0.01, 0.99, 15)
    two = (x.flatten()[:190_000].quantile(quantiles) / scale for x in (found, expected))
    torch.testing.assert_close(*two, atol=0.05, rtol=0)
    groups = found.view(100, 40, 50) / scale  # share a quotient each
    related = (groups.sum(1) ** 2 - (groups**2).sum(1)).mean() / (40 * 39)
    assert abs(float(related)) < 5 / math.sqrt(780 * 50)  # as many pairs of remainders' numbers


def test_signs_are_signs() -> None:
    tables = EmbeddingTables({"t.remainder": 300}, [], embedding_dim=30)
    draws = MADE["mult"](100).draws
    tables.initialise("normal", torch.Generator().manual_seed(0), 0.2, draws)
    drawn = tables.table("t.remainder")
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 5 / math.sqrt(9000)
