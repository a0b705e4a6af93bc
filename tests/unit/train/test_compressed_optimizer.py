"""Training of compressed tables against autograd through the whole tables they stand for."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.data.dataset import Dataset
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.config import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from fastdlrm.train.memory import memory_plan
from fastdlrm.train.run import Run
from fastdlrm.train.step import TrainStep
from fastdlrm.train.trainer import Trainer
from fastdlrm.train.workload import workload_of
from tests.builders import tiny_dataset, tiny_recipe
from tests.compression import make_compressed, materialised
from tests.training import (
    DIM,
    FEATURES,
    TABLES,
    bags,
    make_config,
    make_model,
    single_ids,
    state_of,
    take,
)

KINDS = {"a": "mult", "b": "hash"}
HALVES = {"a": "concat", "b": "plain"}
PLAIN_SGD = {
    "dense_optimizer": DenseOptimizerConfig(name="sgd", learning_rate=0.05),
    "sparse_optimizer": SparseOptimizerConfig(name="sgd", learning_rate=0.05),
}
KEYS = (
    "model.compression={default = {kind = 'quotient_remainder'}, threshold_rows = 50,"
    " tables = {C1 = {kind = 'hash', num_rows = 60}}}"
)


def compressed_model(
    pooling: str = "sum", kinds: Mapping[str, str] = KINDS, **changes: object
) -> DLRM:
    tables, _ = make_compressed(TABLES, FEATURES, kinds, DIM, pooling)
    return make_model(tables=tables, **changes)


def batches(kind: str) -> list[Batch]:
    if kind == "single":
        return [single_ids(k) for k in range(3)]
    return [bags(k, is_weighted=kind == "weighted") for k in range(3)]


def trained_by_autograd(
    model: DLRM, given: list[Batch], pooling: str, kinds: Mapping[str, str]
) -> dict[str, Tensor]:
    """Plain SGD on what lies in memory and on all weights; the tables' end."""
    _, made = make_compressed(TABLES, FEATURES, kinds, DIM)
    state = {n: x.clone().requires_grad_() for n, x in model.tables.state_tensors().items()}
    dense = model.dense_parameters()
    for k, batch in enumerate(given):
        whole = {t: materialised(state, made[t], n) for t, n in TABLES.items()}
        stack = torch.cat([whole["a"], whole["b"]])
        starts = torch.tensor([0, TABLES["a"], 0])
        offsets, B = batch.sparse.offsets(), batch.num_samples
        of_id = torch.repeat_interleave(torch.arange(3 * B), offsets.diff())
        rows = stack[batch.sparse.ids + starts[of_id // B]]
        if batch.sparse.weights is not None:
            rows = rows * batch.sparse.weights[:, None]
        pooled = torch.zeros(3 * B, DIM).index_add(0, of_id, rows)
        if pooling == "mean":
            pooled = pooled / offsets.diff().clamp(min=1)[:, None]
        logits = model.head(batch.dense, pooled.view(3, B, DIM).transpose(0, 1))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        parameters = [*state.values(), *dense.values()]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        rate = 0.05 * (k + 1) / 4  # warm-up over 4 steps
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    parameter -= rate * grad
    return {name: x.detach() for name, x in state.items()}


@pytest.mark.parametrize("kinds", [KINDS, HALVES])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["single", "bags", "weighted"])
def test_steps_are_those_of_autograd(
    kind: str, pooling: str, parts: int, kinds: Mapping[str, str]
) -> None:
    given = batches(kind)
    expected = trained_by_autograd(compressed_model(pooling, kinds), given, pooling, kinds)
    model = compressed_model(pooling, kinds)
    step = TrainStep(model, make_config(**PLAIN_SGD, gradient_accumulation_steps=parts))
    take(step, given)
    for name, table in model.tables.state_tensors().items():
        torch.testing.assert_close(table, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["single", "bags"])
def test_both_heads_take_the_same_steps(kind: str) -> None:
    """With dropout autograd computes; at a rate of almost 0 it drops nothing."""
    fused, plain = compressed_model(), compressed_model(dropout=1e-30)
    steps = [TrainStep(model, make_config("adagrad", "adagrad")) for model in (fused, plain)]
    losses = [take(step, batches(kind)) for step in steps]
    torch.testing.assert_close(*losses)
    found, expected = map(state_of, steps)
    for name, tensor in found.items():
        if "tables." in name:
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_clipping_counts_what_lies_in_memory() -> None:
    """With SGD at rate 1 the step's length over all weights is the clipped norm."""
    model, limit = compressed_model(), 0.01
    before = {name: x.clone() for name, x in model.state_tensors().items()}
    rates = {
        "dense_optimizer": DenseOptimizerConfig(name="sgd", learning_rate=1.0),
        "sparse_optimizer": SparseOptimizerConfig(name="sgd", learning_rate=1.0),
        "schedule": ScheduleConfig(name="constant"),
    }
    take(TrainStep(model, make_config(**rates, gradient_clip_norm=limit)), batches("bags")[:1])
    moved = sum((x - before[n]).square().sum() for n, x in model.state_tensors().items())
    assert float(moved.detach().sqrt()) == pytest.approx(limit, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["single", "bags"])
def test_a_gpu_takes_the_same_steps(kind: str) -> None:
    """Single ids from the fourth step on by a CUDA graph."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    given = [batch for batch in batches(kind) for _ in range(2)]
    here, there = compressed_model(), compressed_model().cuda()
    config = make_config("sgd", "adagrad")
    losses = [take(TrainStep(model, config), given) for model in (here, there)]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    for name, table in here.tables.state_tensors().items():
        ours = there.tables.state_tensors()[name].cpu()
        torch.testing.assert_close(ours, table, atol=1e-4, rtol=1e-3, msg=name)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("compressed"), 3000)


def test_what_is_left_is_said(dataset: Dataset, tmp_path: Path) -> None:
    """A run of compressed tables: its line, its plans of memory, its checkpoint."""
    recipe, sizes = tiny_recipe(KEYS, "train.max_steps=3"), {}
    for name, table in dataset.manifest.encoding.tables.items():
        n = table.num_embeddings
        if name == "C1":
            sizes[f"{name}.hash"] = 60
        elif n > 50:
            sizes |= {f"{name}.quotient": -(-n // 4), f"{name}.remainder": 4}
        else:
            sizes[name] = n
    assert any(name.endswith(".quotient") for name in sizes)
    assert "C6" in sizes  # below the threshold
    said: list[str] = []
    run = Run.create(tmp_path / "run", recipe, dataset)
    Trainer(run, dataset, on_message=said.append).train()
    before = sum(t.num_embeddings for t in dataset.manifest.encoding.tables.values())
    after, count = sum(sizes.values()), sum("." in name for name in sizes) // 2 + 1
    line = next(line for line in said if line.startswith("compression of"))
    assert line.startswith(
        f"compression of {count} of 6 tables: {after:,} rows instead of {before:,}, "
    )
    assert line.endswith(f"({after / before:.1%})")
    tables = run.load_model("last").tables.state_tensors()
    assert {name: len(table) for name, table in tables.items()} == sizes
    assert workload_of(recipe, dataset).num_embeddings == sizes
    items = memory_plan(recipe, dataset.schema, dataset.manifest.encoding, torch.device("cpu"))
    assert items[0].num_bytes == after * recipe.model.embedding_dim * 4
