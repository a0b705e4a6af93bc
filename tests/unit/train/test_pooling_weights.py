"""Learned pooling weights against autograd, bag by bag, and by hand."""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.model.compressed import CompressedTables
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.lookup import Tables
from fastdlrm.train.config import DenseOptimizerConfig, SparseOptimizerConfig
from fastdlrm.train.pooling_weights import WHY_NO_GRAPH
from fastdlrm.train.sparse_optimizer import SparseOptimizer
from fastdlrm.train.step import TrainStep
from tests.compression import make_compressed
from tests.training import (
    DIM,
    FEATURES,
    TABLES,
    bags,
    look_up,
    make_config,
    make_model,
    pooling_of,
    restore,
    single_ids,
    state_of,
    take,
)

B = 6
LAYOUTS = ("single", "bags", "weighted")
STARTS = {"a": 0, "b": TABLES["a"]}


def make_tables(pooling: str = "sum", dtype: torch.dtype = torch.float32) -> EmbeddingTables:
    """Weights are not 1: a factor that is left out must show."""
    tables = EmbeddingTables(
        TABLES, FEATURES, embedding_dim=DIM, pooling=pooling_of(pooling), dtype=dtype
    )
    generator = torch.Generator().manual_seed(0)
    tables.initialise("normal", generator, 0.5)
    tables.learn_weights()
    assert tables.pooling_weight is not None
    with torch.no_grad():
        tables.pooling_weight.uniform_(0.5, 2, generator=generator)
    return tables


def make_batch(layout: str, seed: int = 0) -> Batch:
    if layout == "single":
        return single_ids(seed, B)
    return bags(seed, is_weighted=layout == "weighted", num_samples=B)


def upstream_of(seed: int) -> Tensor:
    return torch.randn(B, len(FEATURES), DIM, generator=torch.Generator().manual_seed(seed))


def slow_pooled(rows: Tensor, weight: Tensor, sparse: SparseBatch, pooling: str) -> Tensor:
    """The definition, one id at a time, shape (B, F, D)."""
    rules = pooling_of(pooling)
    offsets, features = sparse.offsets().tolist(), []
    for f, table in enumerate(FEATURES):
        of_feature = []
        for b in range(B):
            start, stop = offsets[f * B + b], offsets[f * B + b + 1]
            total = torch.zeros(DIM, dtype=rows.dtype)
            for k in range(start, stop):
                row = STARTS[table] + int(sparse.ids[k])
                given = 1.0 if sparse.weights is None else float(sparse.weights[k])
                total = total + given * weight[row] * rows[row]
            rule = rules if isinstance(rules, str) else rules[table]
            of_feature.append(total / max(stop - start, 1) if rule == "mean" else total)
        features.append(torch.stack(of_feature))
    return torch.stack(features, 1)


def config_of(name: str, l2: float = 0.0) -> SparseOptimizerConfig:
    return SparseOptimizerConfig(name=name, learning_rate=0.1, eps=1e-2, l2=l2)


@pytest.mark.parametrize("pooling", ["sum", "mean", "mixed"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_rows_and_weights_learn_as_by_autograd(name: str, layout: str, pooling: str) -> None:
    """Under SGD and Adagrad a zero gradient moves nothing, so dense and sparse agree."""
    tables = make_tables(pooling)
    rows, weight = (x.detach().double().requires_grad_() for x in tables.parameters())
    optimizer = SparseOptimizer(config_of(name), tables)
    make = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[name]
    slow = make([rows, weight], lr=0.1, **({"eps": 1e-2} if name == "adagrad" else {}))
    for seed in range(3):
        sparse, upstream = make_batch(layout, seed).sparse, upstream_of(seed)
        pooled = slow_pooled(rows, weight, sparse, pooling)
        torch.testing.assert_close(tables(sparse).double(), pooled, rtol=1e-5, atol=1e-6)
        optimizer.accumulate(sparse, upstream)
        optimizer.step(0.1)
        slow.zero_grad()
        (pooled * upstream).sum().backward()
        slow.step()
    assert (weight - make_tables().pooling_weight).abs().max() > 0.1
    torch.testing.assert_close(tables.weight.double(), rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tables.pooling_weight.double(), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adam"])
def test_one_step_by_hand(name: str) -> None:
    tables = EmbeddingTables({"t": 3}, ["t"], embedding_dim=2)
    tables.learn_weights()
    with torch.no_grad():
        tables.weight.copy_(torch.tensor([[9.0, 9], [1, 2], [9, 9]]))
        tables.pooling_weight[1] = 2
    config = SparseOptimizerConfig(name=name, learning_rate=0.1, eps=0.5, l2=0.1)
    optimizer = SparseOptimizer(config, tables)
    ids = torch.tensor([1, 1], dtype=torch.int32)
    sparse = SparseBatch(ids=ids, lengths=None, weights=None, num_features=1)
    optimizer.accumulate(sparse, torch.tensor([[[1.0, 3.0]], [[2.0, -3.5]]]))
    # row 1 = (1, 2), w = 2: G = (3, -0.5), dw = 3 - 1 = 2; dE = (6, -1), with l2 (6.1, -0.8)
    assert optimizer.squared_norm().item() == 4 + 36 + 1
    optimizer.step(0.1)
    # s = 2^2, and m' = 2, v' = 2^2 alike: 2 - 0.1 * 2 / (2 + 0.5)
    assert tables.pooling_weight.tolist() == pytest.approx([1, 1.92, 1])
    expected = {
        # s = (6.1^2 + 0.8^2) / 2 = 18.925
        "rowwise_adagrad": [0.61 / (math.sqrt(18.925) + 0.5), -0.08 / (math.sqrt(18.925) + 0.5)],
        "adam": [0.1 * 6.1 / 6.6, -0.1 * 0.8 / 1.3],
    }[name]
    found = (torch.tensor([1.0, 2.0]) - tables.weight[1]).tolist()
    assert found == pytest.approx(expected, rel=1e-5)
    kept = {
        # (1 - 0.9) * 2 and (1 - 0.999) * 2^2
        "rowwise_adagrad": {"square_sum": 4.0},
        "adam": {"first": 0.2, "second": 0.004},
    }[name]
    state = optimizer.state_tensors()
    for key, value in kept.items():
        assert state[f"pooling_weights.t.{key}"].tolist() == pytest.approx([0, value, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_give_equal_bits(layout: str) -> None:
    batch, upstream = make_batch(layout), upstream_of(1)
    found = []
    for edges in ([0, B], [0, 1, 4, B]):
        tables = make_tables("mixed")
        optimizer = SparseOptimizer(config_of("rowwise_adagrad"), tables)
        for start, stop in pairwise(edges):
            optimizer.accumulate(batch.slice(start, stop).sparse, upstream[start:stop])
        optimizer.step(0.1)
        found.append(tables)
    for one, other in zip(*(tables.parameters() for tables in found), strict=True):
        assert torch.equal(one, other)


def compressed_tables() -> CompressedTables:
    """Vectors of one table are products of two rows, of the other sums; each row has a weight."""
    tables, _ = make_compressed(
        TABLES, FEATURES, {"a": "mult", "b": "hash"}, DIM, pooling_of("mixed")
    )
    generator = torch.Generator().manual_seed(0)
    tables.initialise("normal", generator, 0.5)
    tables.tables.learn_weights()
    with torch.no_grad():
        tables.tables.pooling_weight.uniform_(0.5, 2, generator=generator)
    return tables


@pytest.mark.parametrize("tables", [partial(make_tables, "mixed"), compressed_tables])
@pytest.mark.parametrize("changes", [{}, {"gradient_clip_norm": 0.05}, {"loss": "mse"}])
def test_a_step_is_that_of_autograd_through_the_whole_model(
    changes: dict[str, object], tables: Callable[[], Tables]
) -> None:
    """With SGD and no l2: w -= lr * scale * g for every number."""
    model = make_model()
    model.tables = tables()
    plain = copy.deepcopy(model)
    config = make_config(
        dense_optimizer=DenseOptimizerConfig(name="sgd", learning_rate=0.1),
        sparse_optimizer=SparseOptimizerConfig(name="sgd", learning_rate=0.1),
        **changes,
    )
    batch = bags(3, is_weighted=True)
    logits = plain(batch.dense, batch.sparse)
    if changes.get("loss") == "mse":
        loss = torch.nn.functional.mse_loss(torch.sigmoid(logits), batch.labels)
    else:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
    loss.backward()
    norm = torch.stack([p.grad.square().sum() for p in plain.parameters()]).sum().sqrt()
    scale = min(1.0, 0.05 / float(norm)) if "gradient_clip_norm" in changes else 1.0
    assert ("gradient_clip_norm" in changes) == (scale < 1)
    step = TrainStep(model, config)
    assert step(batch, 3).item() == pytest.approx(loss.item(), rel=1e-5)  # the warm-up is over
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        expected = theirs - 0.1 * scale * theirs.grad
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_state_round_trip_continues_exactly() -> None:
    config = make_config("adagrad", "adam")
    batches = [bags(seed, is_weighted=True) for seed in range(4)]

    def make_step() -> TrainStep:
        model = make_model(pooling="mixed")
        model.tables.learn_weights()
        return TrainStep(model, config)

    whole, first, second = make_step(), make_step(), make_step()
    take(whole, batches)
    take(first, batches[:2])
    saved = state_of(first)
    shapes = {name: tuple(x.shape) for name, x in saved.items() if "pooling_weights." in name}
    assert shapes == {
        f"{group}.pooling_weights.{table}{end}": (num_rows,)
        for group, end in (("model", ""), ("sparse", ".first"), ("sparse", ".second"))
        for table, num_rows in TABLES.items()
    }
    live = {"model": second.model, "sparse": second.sparse_optimizer}
    live["dense"] = second.dense_optimizer
    for group, owner in live.items():
        of_group = {n.partition(".")[2]: x for n, x in saved.items() if n.startswith(group)}
        restore(owner.state_tensors(), of_group)
    second.dense_optimizer.refresh()
    take(second, batches[2:], 2)
    expected = state_of(whole)
    assert (expected["model.pooling_weights.a"] != 1).any()
    for name, tensor in state_of(second).items():
        assert torch.equal(tensor, expected[name]), name


def test_such_a_step_is_no_graph_and_reads_no_row_as_it_is() -> None:
    model = make_model()
    assert SparseOptimizer(config_of("sgd"), model.tables).why_no_graph == ""
    model.tables.learn_weights()
    assert SparseOptimizer(config_of("sgd"), model.tables).why_no_graph == WHY_NO_GRAPH
    assert look_up(model, single_ids(0)).source() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_gpu_agrees_with_the_cpu(name: str, layout: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        tables = make_tables("mixed").to(device)
        optimizer = SparseOptimizer(config_of(name, l2=0.1), tables)
        for seed in range(2):
            sparse = make_batch(layout, seed).sparse.to(device)
            optimizer.accumulate(sparse, upstream_of(seed).to(device))
            optimizer.step(0.1, 1 / (1 + optimizer.squared_norm().sqrt()))
        found.append([x.detach().cpu() for x in tables.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
