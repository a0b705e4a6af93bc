import copy

import numpy as np
import pytest
import torch

from fastdlrm.batch import Batch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.interaction import DotInteraction, Vectors
from fastdlrm.model.mlp import build_mlp
from fastdlrm.train.config import (
    DenseOptimizerConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
    TrainConfig,
)
from fastdlrm.train.step import TrainStep

D = 4


def _model() -> DLRM:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables({"a": 20, "b": 7}, ["a", "b"], embedding_dim=D)
    tables.initialise("normal", generator, 0.5)
    return DLRM(
        tables,
        build_mlp(3, (8, D), generator=generator),
        DotInteraction(Vectors(2, D, True)),
        build_mlp(D + 3, (8,), out_features=1, generator=generator),
    )


def _batch(B: int, seed: int = 0) -> Batch:
    draw = np.random.default_rng(seed)
    ids = np.concatenate([draw.integers(0, 20, B), draw.integers(0, 7, B)]).astype(np.int32)
    batch = Batch.allocate(B, 3, 2)
    batch.sparse.ids.copy_(torch.from_numpy(ids))
    batch.dense.copy_(torch.from_numpy(draw.normal(size=(B, 3)).astype(np.float32)))
    batch.labels.copy_(torch.from_numpy(draw.integers(0, 2, B).astype(np.float32)))
    return batch


def _config(dense: str = "sgd", sparse: str = "sgd", **changes) -> TrainConfig:
    settings = {
        "global_batch_size": 12,
        "num_epochs": 1,
        "dense_optimizer": DenseOptimizerConfig(name=dense, learning_rate=0.1),
        "sparse_optimizer": SparseOptimizerConfig(name=sparse, learning_rate=0.1),
        "schedule": ScheduleConfig(name="constant"),
    }
    return TrainConfig(**(settings | changes))


def test_sgd_step_is_plain_autograd():
    """Gradients through the whole model by autograd, then w -= lr * g for every weight."""
    model, batch = _model(), _batch(12)
    plain = copy.deepcopy(model)
    logits = plain(batch.dense, batch.sparse)
    loss = torch.nn.functional.binary_cross_entropy(torch.sigmoid(logits), batch.labels)
    loss.backward()
    with torch.no_grad():
        for weight in plain.parameters():
            weight -= 0.1 * weight.grad
    reported = TrainStep(model, _config())(batch, 0)
    assert torch.allclose(reported, loss.detach(), atol=1e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("sparse", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
@pytest.mark.parametrize("count", [2, 3, 12])
def test_accumulation_accumulates(sparse, count):
    """The reference zeroes gradients before the last backward, so it accumulates nothing."""
    whole, parts = _model(), _model()
    step_whole = TrainStep(whole, _config("adagrad", sparse))
    step_parts = TrainStep(parts, _config("adagrad", sparse, gradient_accumulation_steps=count))
    for k in range(3):
        a, b = step_whole(_batch(12, k), k), step_parts(_batch(12, k), k)
        assert torch.allclose(a, b, atol=1e-6)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_accumulation_of_a_short_batch():
    one, other = _model(), _model()
    TrainStep(one, _config())(_batch(3), 0)
    TrainStep(other, _config(gradient_accumulation_steps=4))(_batch(3), 0)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    """With SGD at rate 1, the step's length over all weights is the clipped norm."""
    model, limit = _model(), 0.01
    before = [w.detach().clone() for w in model.parameters()]
    config = _config(
        gradient_clip_norm=limit,
        dense_optimizer=DenseOptimizerConfig(name="sgd", learning_rate=1.0),
        sparse_optimizer=SparseOptimizerConfig(name="sgd", learning_rate=1.0),
    )
    TrainStep(model, config)(_batch(12), 0)
    moved = sum(
        (a - b.detach()).square().sum() for a, b in zip(before, model.parameters(), strict=True)
    )
    assert moved.sqrt().item() == pytest.approx(limit, rel=1e-3)


def test_schedule_drives_both_optimizers():
    """Warm-up over 10 steps: the first step moves a tenth of what a constant rate moves."""
    constant, warming = _model(), _model()
    start = [w.detach().clone() for w in constant.parameters()]
    TrainStep(constant, _config())(_batch(12), 0)
    warm = _config(schedule=ScheduleConfig(name="constant", warmup_steps=10))
    TrainStep(warming, warm)(_batch(12), 0)
    for w0, a, b in zip(start, constant.parameters(), warming.parameters(), strict=True):
        assert torch.allclose((a - w0) / 10, b - w0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("use_cuda_graph", [False, True])
def test_a_step_waits_for_no_number_of_the_device(use_cuda_graph: bool) -> None:
    """The reference fetches the loss at every step; here it stays a tensor until it is recorded."""
    model = _model().cuda()
    step = TrainStep(model, _config(use_cuda_graph=use_cuda_graph))
    batches = [_batch(12, k).pin() for k in range(6)]
    for k in range(4):  # compiles, allocates, captures
        step(batches[k], k)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(batches[k], k) for k in (4, 5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss.is_cuda for loss in losses)


def test_rows_outside_the_batch_do_not_move():
    model, batch = _model(), _batch(4)
    before = model.tables.weight.detach().clone()
    TrainStep(model, _config("adam", "adam"))(batch, 0)
    touched = set(model.tables.rows(batch.sparse).tolist())
    for row in range(27):
        same = torch.equal(before[row], model.tables.weight[row].detach())
        assert same == (row not in touched)
