"""Compressed tables against the whole tables that they stand for, looked up bag by bag."""

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.model.compressed import CompressedTables
from tests.compression import KINDS, gradients, make_compressed, materialised
from tests.training import DIM, FEATURES, TABLES, bags, single_ids

BATCHES = {
    "single": lambda: single_ids(1).sparse,
    "bags": lambda: bags(1).sparse,
    "weighted": lambda: bags(1, is_weighted=True).sparse,
    "weighted single": lambda: weighted(single_ids(1).sparse),
}


def weighted(sparse: SparseBatch) -> SparseBatch:
    weights = torch.rand(len(sparse.ids), generator=torch.Generator().manual_seed(2))
    return SparseBatch(
        ids=sparse.ids, lengths=None, weights=weights, num_features=sparse.num_features
    )


def pooled_of(tables: dict[str, Tensor], sparse: SparseBatch, pooling: str) -> Tensor:
    """Row by row, shape (B, F, D), differentiable."""
    offsets, B = sparse.offsets().tolist(), sparse.num_samples
    vectors = []
    for bag in range(sparse.num_features * B):
        table = tables[FEATURES[bag // B]]
        total = torch.zeros(DIM)
        for place in range(offsets[bag], offsets[bag + 1]):
            weight = 1.0 if sparse.weights is None else float(sparse.weights[place])
            total = total + weight * table[int(sparse.ids[place])]
        if pooling == "mean":
            total = total / max(offsets[bag + 1] - offsets[bag], 1)
        vectors.append(total)
    return torch.stack(vectors).view(-1, B, DIM).transpose(0, 1)


def drawn(kind: str, pooling: str) -> tuple[CompressedTables, dict[str, Tensor], dict]:
    """Table a compressed, b plain: tables, what lies in memory as leaves of autograd, and whole."""
    tables, made = make_compressed(TABLES, FEATURES, {"a": kind, "b": "plain"}, DIM, pooling)
    tables.initialise("normal", torch.Generator().manual_seed(0), 0.5)
    state = {n: x.clone().requires_grad_() for n, x in tables.state_tensors().items()}
    whole = {name: materialised(state, made[name], n) for name, n in TABLES.items()}
    return tables, state, whole


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_whole_tables(kind: str, batch: str, pooling: str) -> None:
    """Vectors, and gradients of what lies in memory: by autograd and as the train step has them."""
    sparse = BATCHES[batch]()
    tables, state, whole = drawn(kind, pooling)
    expected = pooled_of(whole, sparse, pooling)
    found = tables(sparse)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    expected.backward(grad)
    found.backward(grad)
    by_autograd = {name: grad.clone() for name, grad in gradients(tables).items()}
    compression = tables.compression
    lowered = compression.lower(sparse)
    with torch.no_grad():
        vectors = tables.tables(lowered.sparse)
        of_vectors = compression.backward(grad, vectors, lowered)
    tables.zero_grad()
    tables.tables(lowered.sparse).backward(of_vectors)
    for name, leaf in state.items():
        of_table = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        for ours in (by_autograd, gradients(tables)):
            torch.testing.assert_close(ours[name], of_table, atol=1e-4, rtol=1e-4, msg=name)


def test_products_are_taken_id_by_id() -> None:
    """Of the bag (0, 4) with 3 collisions: q0 r0 + q1 r1, not (q0 + q1) (r0 + r1)."""
    tables, _ = make_compressed({"t": 9}, ["t"], {"t": "mult"}, 1)
    with torch.no_grad():
        tables.tables.table("t.quotient").copy_(torch.tensor([[2.0], [3.0], [5.0]]))
        tables.tables.table("t.remainder").copy_(torch.tensor([[7.0], [11.0], [13.0]]))
    sparse = SparseBatch(
        ids=torch.tensor([0, 4, 8], dtype=torch.int32),
        lengths=torch.tensor([2, 0, 1], dtype=torch.int32),
        weights=None,
        num_features=1,
    )
    # 2 * 7 + 3 * 11 = 47; nothing; 5 * 13 = 65
    assert tables(sparse).flatten().tolist() == [47, 0, 65]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_ids(kind: str) -> None:
    tables, _, _ = drawn(kind, "mean")
    for lengths in (None, torch.zeros(0, dtype=torch.int32)):
        ids = torch.zeros(0, dtype=torch.int32)
        sparse = SparseBatch(ids=ids, lengths=lengths, weights=None, num_features=3)
        assert tables(sparse).shape == (0, 3, DIM)
    empty = SparseBatch(ids=ids, lengths=torch.zeros(6).int(), weights=None, num_features=3)
    assert torch.equal(tables(empty), torch.zeros(2, 3, DIM))


def test_a_type_is_kept_to() -> None:
    tables, _, _ = drawn("mult", "sum")
    sparse = single_ids(1).sparse
    found = tables(sparse, torch.bfloat16)
    assert torch.equal(found, tables(sparse).bfloat16())
