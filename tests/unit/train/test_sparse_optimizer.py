"""The tables' optimizer against torch.optim and by hand; accumulation, clipping, state."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.interaction import DotInteraction, Vectors
from fastdlrm.model.mlp import build_mlp
from fastdlrm.train.config import DenseOptimizerConfig, SparseOptimizerConfig
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.loss import bce
from fastdlrm.train.sparse_optimizer import SparseOptimizer
from tests import oracles
from tests.training import restore

DIM = 4
SPARSE_NAMES = ["sgd", "adagrad", "rowwise_adagrad", "adam"]


def sparse_config(name: str, eps: float = 1e-8, l2: float = 0.0) -> SparseOptimizerConfig:
    return SparseOptimizerConfig(name=name, learning_rate=0.1, eps=eps, l2=l2)


def make_tables() -> EmbeddingTables:
    tables = EmbeddingTables({"a": 9, "b": 5}, ["a", "b", "a"], embedding_dim=DIM)
    tables.initialise("reference", torch.Generator().manual_seed(0))
    return tables


def make_batch(num_samples: int, layout: str, seed: int = 0) -> Batch:
    """Rows 8 of table a and 4 of table b are in no batch."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)

    lengths = None if layout == "single" else draw(4, 3 * num_samples)
    sizes = [num_samples] * 3 if lengths is None else lengths.view(3, -1).sum(1).tolist()
    ids = torch.cat([draw(high, n) for high, n in zip((8, 4, 8), sizes, strict=True)])
    weights = torch.rand(len(ids), generator=generator) if layout == "weighted" else None
    return Batch(
        dense=torch.randn(num_samples, 2, generator=generator),
        sparse=SparseBatch(ids=ids, lengths=lengths, weights=weights, num_features=3),
        labels=draw(2, num_samples).float(),
    )


def table_gradient(tables: EmbeddingTables, batch: Batch, upstream: Tensor) -> Tensor:
    """The dense gradient of the stack, by autograd."""
    (grad,) = torch.autograd.grad(tables(batch.sparse), tables.weight, upstream)
    return grad


@pytest.mark.parametrize("layout", ["single", "bags", "weighted"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-8)),
    ],
)
def test_matches_torch_on_the_dense_gradient(
    name: str, make: Callable[[list[Tensor]], torch.optim.Optimizer], layout: str
) -> None:
    """Under SGD and Adagrad a zero gradient moves nothing, so dense and sparse agree."""
    tables, other = make_tables(), make_tables()
    optimizer, reference = SparseOptimizer(sparse_config(name), tables), make([other.weight])
    for seed in range(3):
        batch = make_batch(6, layout, seed)
        upstream = torch.randn(6, 3, DIM, generator=torch.Generator().manual_seed(seed))
        optimizer.accumulate(batch.sparse, upstream)
        optimizer.step(0.1)
        other.weight.grad = table_gradient(other, batch, upstream)
        reference.step()
    torch.testing.assert_close(tables.weight, other.weight)


@pytest.mark.parametrize("layout", ["single", "bags", "weighted"])
def test_the_gradient_of_tables_that_differ_in_pooling(layout: str) -> None:
    rules = {"a": "mean", "b": "sum"}
    tables = EmbeddingTables({"a": 9, "b": 5}, ["a", "b", "a"], embedding_dim=DIM, pooling=rules)
    batch, B = make_batch(6, layout), 6
    upstream = torch.randn(B, 3, DIM, generator=torch.Generator().manual_seed(2))
    optimizer = SparseOptimizer(sparse_config("sgd"), tables)
    optimizer.accumulate(batch.sparse, upstream)
    expected = np.zeros((14, DIM))
    sizes = (torch.ones(3 * B) if layout == "single" else batch.sparse.lengths).int().tolist()
    ids, weights = batch.sparse.ids.split(sizes), [None] * 3 * B
    if layout == "weighted":
        weights = [part.tolist() for part in batch.sparse.weights.split(sizes)]
    for f, (table, start) in enumerate((("a", 0), ("b", 9), ("a", 0))):
        bags = [(start + part).tolist() for part in ids[f * B : (f + 1) * B]]
        of_bags = weights[f * B : (f + 1) * B] if layout == "weighted" else None
        grads = oracles.row_gradient(upstream[:, f].double().numpy(), bags, of_bags, rules[table])
        for row, grad in grads.items():
            expected[row] += grad
    found = np.zeros((14, DIM))
    gradient = optimizer.gradient()
    found[gradient.rows] = gradient.values
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_adam_matches_torch_sparse_adam() -> None:
    tables, other = make_tables(), make_tables()
    optimizer = SparseOptimizer(sparse_config("adam", eps=1e-20), tables)
    reference = torch.optim.SparseAdam([other.weight], lr=0.1, eps=1e-20)
    for seed in range(3):
        batch = make_batch(2, "single", seed)
        upstream = torch.randn(2, 3, DIM, generator=torch.Generator().manual_seed(seed))
        optimizer.accumulate(batch.sparse, upstream)
        optimizer.step(0.1)
        other.weight.grad = table_gradient(other, batch, upstream).to_sparse(1)
        reference.step()
    torch.testing.assert_close(tables.weight, other.weight)


def test_rowwise_adagrad_by_hand() -> None:
    tables = EmbeddingTables({"t": 3}, ["t"], embedding_dim=2)
    with torch.no_grad():
        tables.weight.fill_(1.0)
    optimizer = SparseOptimizer(sparse_config("rowwise_adagrad", eps=0.5), tables)
    ids = torch.tensor([2, 2], dtype=torch.int32)
    sparse = SparseBatch(ids=ids, lengths=None, weights=None, num_features=1)
    optimizer.accumulate(sparse, torch.tensor([[[1.0, 3.0]], [[2.0, 1.0]]]))
    optimizer.step(0.1)
    # both samples read row 2: g = (3, 4); s = (9 + 16) / 2 = 12.5
    denominator = math.sqrt(12.5) + 0.5
    expected = [[1, 1], [1, 1], [1 - 0.3 / denominator, 1 - 0.4 / denominator]]
    torch.testing.assert_close(tables.weight.data, torch.tensor(expected))
    assert optimizer.state_tensors()["tables.t.square_sum"].tolist() == [0, 0, 12.5]


@pytest.mark.parametrize("name", SPARSE_NAMES)
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_only_rows_of_the_batch_move(name: str, l2: float) -> None:
    tables = make_tables()
    before = tables.weight.detach().clone()
    optimizer = SparseOptimizer(sparse_config(name, l2=l2), tables)
    batch = make_batch(3, "single")
    optimizer.accumulate(batch.sparse, torch.ones(3, 3, DIM))
    optimizer.step(0.1)
    read = set(tables.rows(batch.sparse).tolist())
    moved = (tables.weight.detach() != before).any(1)
    assert set(moved.nonzero().view(-1).tolist()) == read
    for table, start in (("a", 0), ("b", 9)):
        for key, state in optimizer.state_tensors().items():
            if key.startswith(f"tables.{table}."):
                changed = (state.reshape(len(state), -1) != 0).any(1).nonzero().view(-1)
                expected = {row - start for row in read if 0 <= row - start < len(state)}
                assert set(changed.tolist()) == expected


@pytest.mark.parametrize("layout", ["single", "bags", "weighted"])
def test_micro_batches_of_equal_gradients_give_equal_bits(layout: str) -> None:
    """Features that share a table included: the order of summation is the batch's."""
    batch = make_batch(12, layout)
    upstream = torch.randn(12, 3, DIM, generator=torch.Generator().manual_seed(1))
    weights = []
    for edges in ([0, 12], [0, 4, 5, 12]):
        tables = make_tables()
        optimizer = SparseOptimizer(sparse_config("rowwise_adagrad"), tables)
        for start, stop in pairwise(edges):
            optimizer.accumulate(batch.slice(start, stop).sparse, upstream[start:stop])
        optimizer.step(0.1)
        weights.append(tables.weight.detach())
    assert torch.equal(*weights)


def test_squared_norm_is_that_of_the_dense_gradient() -> None:
    tables, batch = make_tables(), make_batch(6, "weighted")
    upstream = torch.randn(6, 3, DIM, generator=torch.Generator().manual_seed(1))
    optimizer = SparseOptimizer(sparse_config("sgd", l2=0.5), tables)
    assert optimizer.squared_norm().item() == 0
    optimizer.accumulate(batch.sparse.slice(0, 2), upstream[:2])
    optimizer.squared_norm()
    optimizer.accumulate(batch.sparse.slice(2, 6), upstream[2:])
    expected = table_gradient(tables, batch, upstream).square().sum()
    torch.testing.assert_close(optimizer.squared_norm(), expected)


@pytest.mark.parametrize("as_tensor", [True, False])
def test_scale_acts_on_the_gradient_and_l2_comes_after(as_tensor: bool) -> None:
    tables, batch = make_tables(), make_batch(6, "single")
    before = tables.weight.detach().clone()
    grad = table_gradient(tables, batch, torch.ones(6, 3, DIM))
    optimizer = SparseOptimizer(sparse_config("sgd", l2=0.5), tables)
    optimizer.accumulate(batch.sparse, torch.ones(6, 3, DIM))
    optimizer.step(0.1, torch.tensor(0.25) if as_tensor else 0.25)
    is_read = (grad != 0).any(1, keepdim=True)
    expected = before - 0.1 * (0.25 * grad + 0.5 * before * is_read)
    torch.testing.assert_close(tables.weight.detach(), expected)


def test_step_without_a_batch_moves_nothing() -> None:
    tables = make_tables()
    before = tables.weight.detach().clone()
    SparseOptimizer(sparse_config("adagrad"), tables).step(0.1)
    assert torch.equal(tables.weight.detach(), before)


@pytest.mark.parametrize("name", SPARSE_NAMES)
def test_state_round_trip_continues_exactly(name: str) -> None:
    def run(optimizer: SparseOptimizer, seeds: range) -> None:
        for seed in seeds:
            optimizer.accumulate(make_batch(6, "bags", seed).sparse, torch.ones(6, 3, DIM))
            optimizer.step(0.1)

    tables, resumed = make_tables(), make_tables()
    optimizer = SparseOptimizer(sparse_config(name), tables)
    run(optimizer, range(2))
    saved = {key: tensor.clone() for key, tensor in optimizer.state_tensors().items()}
    resumed.weight.data.copy_(tables.weight)
    run(optimizer, range(2, 4))
    continued = SparseOptimizer(sparse_config(name), resumed)
    restore(continued.state_tensors(), saved)
    run(continued, range(2, 4))
    assert torch.equal(tables.weight, resumed.weight)


def test_state_is_named_by_table() -> None:
    state = SparseOptimizer(sparse_config("adam"), make_tables()).state_tensors()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        "tables.a.first": (9, DIM),
        "tables.a.second": (9, DIM),
        "tables.b.first": (5, DIM),
        "tables.b.second": (5, DIM),
        "num_steps": (),
    }
    rowwise = SparseOptimizer(sparse_config("rowwise_adagrad"), make_tables()).state_tensors()
    assert rowwise["tables.a.square_sum"].shape == (9,)
    assert set(SparseOptimizer(sparse_config("sgd"), make_tables()).state_tensors()) == {
        "num_steps"
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", ["single", "weighted"])
@pytest.mark.parametrize("name", SPARSE_NAMES)
def test_gpu_agrees_with_the_cpu(name: str, layout: str) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        tables = make_tables().to(device)
        optimizer = SparseOptimizer(sparse_config(name, eps=1e-2, l2=0.1), tables)
        for seed in range(2):
            batch, upstream = make_batch(12, layout, seed).to(device), torch.ones(12, 3, DIM)
            optimizer.accumulate(batch.slice(0, 5).sparse, upstream[:5].to(device))
            optimizer.accumulate(batch.slice(5, 12).sparse, upstream[5:].to(device))
            scale = 1 / (1 + optimizer.squared_norm().sqrt())
            optimizer.step(0.1, scale)
        weights.append(tables.weight.detach().cpu())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("dense_name", ["sgd", "adagrad", "adam", "adamw"])
@pytest.mark.parametrize("sparse_name", SPARSE_NAMES)
def test_micro_batches_are_the_whole_batch(sparse_name: str, dense_name: str) -> None:
    """The reference zeroes the gradients before the last backward of an accumulation."""
    results = [train(sparse_name, dense_name, edges) for edges in ([0, 12], [0, 4, 5, 12])]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


def train(sparse_name: str, dense_name: str, edges: list[int]) -> list[Tensor]:
    """Parameters after two steps of 12 samples, cut into micro-batches at `edges`."""
    generator = torch.Generator().manual_seed(0)
    bottom = build_mlp(2, [DIM], generator=generator)
    top = build_mlp(DIM + 6, [5], out_features=1, generator=generator)
    model = DLRM(make_tables(), bottom, DotInteraction(Vectors(3, DIM, True)), top)
    # A large eps: first steps of Adagrad and Adam are sign(g), which magnifies rounding near 0.
    dense_optimizer = DenseOptimizer(
        DenseOptimizerConfig(name=dense_name, learning_rate=0.1, eps=1e-2),
        model.dense_parameters(),
    )
    sparse_optimizer = SparseOptimizer(sparse_config(sparse_name, eps=1e-2), model.tables)
    for seed in range(2):
        batch = make_batch(12, "weighted", seed)
        dense_optimizer.zero_grad()
        for start, stop in pairwise(edges):
            micro = batch.slice(start, stop)
            with torch.no_grad():
                pooled = model.tables(micro.sparse)
            pooled.requires_grad_()
            bce(model.head(micro.dense, pooled), micro.labels, 12).backward()
            assert pooled.grad is not None
            sparse_optimizer.accumulate(micro.sparse, pooled.grad)
        dense_optimizer.step(0.1)
        sparse_optimizer.step(0.1)
    return [p.detach() for p in model.parameters()]
