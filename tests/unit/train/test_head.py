"""The fused head computes what autograd does, for every shape it knows."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.kernels.logit_loss import LossRule
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.mlp import build_mlp
from fastdlrm.train.config import DenseOptimizerConfig
from fastdlrm.train.dense_optimizer import DenseOptimizer
from fastdlrm.train.head import AutogradHead, FusedHead, why_not_fused
from fastdlrm.train.loss import loss_function
from tests.interactions import SETTINGS, make_interaction
from tests.training import look_up

D = 4
OPTIMIZER = DenseOptimizerConfig(name="sgd", learning_rate=0.1)


def make_model(
    interaction: str = "dot",
    num_dense: int = 3,
    hidden: tuple[int, ...] = (8, 5),
    *,
    bottom_relu: bool = True,
    **changes,
) -> DLRM:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables({"a": 20, "b": 7}, ["a", "b", "a"], embedding_dim=D)
    tables.initialise("normal", generator, 0.5)
    bottom = None
    if num_dense:
        widths, end = ((6, D), 0) if bottom_relu else ((6,), D)
        bottom = build_mlp(num_dense, widths, out_features=end, generator=generator)
    join = make_interaction(interaction, 3, D, num_dense > 0, generator)
    top = build_mlp(join.width, hidden, out_features=1, generator=generator, **changes)
    return DLRM(tables, bottom, join, top)


def make_batch(num_dense: int, has_bags: bool, B: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)

    lengths = draw(4, 3 * B) if has_bags else None
    sizes = [B] * 3 if lengths is None else lengths.view(3, B).sum(1).tolist()
    ids = torch.cat([draw(high, n) for high, n in zip((20, 7, 20), sizes, strict=True)])
    return Batch(
        dense=torch.randn(B, num_dense, generator=generator),
        sparse=SparseBatch(ids=ids, lengths=lengths, weights=None, num_features=3),
        labels=draw(2, B).float(),
    )


def run(model: DLRM, batch: Batch, loss: str, is_fused: bool, width_multiple: int = 1):
    optimizer = DenseOptimizer(OPTIMIZER, model.dense_parameters(), width_multiple=width_multiple)
    weights = (0.7, 2.0)
    if is_fused:
        head = FusedHead(model, LossRule(loss, *weights), optimizer)
    else:
        head = AutogradHead(model, loss_function(loss, weights), optimizer, torch.float32)
    grads: list[Tensor] = []
    optimizer.gradient.fill_(7.0)  # whatever was there before must not matter
    total = head(batch, look_up(model, batch), batch.num_samples, grads.append, accumulate=False)
    named = {n: p.grad.clone() for n, p in model.dense_parameters().items() if p.grad is not None}
    return total, grads[0], named


@pytest.mark.parametrize("width_multiple", [1, 8])
@pytest.mark.parametrize("hidden", [(8, 5), ()])
@pytest.mark.parametrize("num_dense", [3, 0])
@pytest.mark.parametrize("has_bags", [False, True])
@pytest.mark.parametrize("interaction", SETTINGS)
@pytest.mark.parametrize("loss", ["bce", "weighted_bce", "mse"])
def test_fused_is_autograd(
    loss: str,
    interaction: str,
    has_bags: bool,
    num_dense: int,
    hidden: tuple[int, ...],
    width_multiple: int,
) -> None:
    model = make_model(interaction, num_dense, hidden)
    assert_fused_is_autograd(model, make_batch(num_dense, has_bags), loss, width_multiple)


@pytest.mark.parametrize("width_multiple", [1, 8])
@pytest.mark.parametrize("interaction", SETTINGS)
def test_a_bottom_mlp_without_relu_at_its_end(interaction: str, width_multiple: int) -> None:
    model, batch = make_model(interaction, bottom_relu=False), make_batch(3, has_bags=False)
    assert (model.bottom_mlp(batch.dense) < 0).any()
    assert_fused_is_autograd(model, batch, "bce", width_multiple)


def assert_fused_is_autograd(model: DLRM, batch: Batch, loss: str, width_multiple: int) -> None:
    other = copy.deepcopy(model)
    assert why_not_fused(model) is None
    loss_one, pooled_one, named_one = run(model, batch, loss, True, width_multiple)
    loss_two, pooled_two, named_two = run(other, batch, loss, False)
    torch.testing.assert_close(loss_one, loss_two)
    torch.testing.assert_close(pooled_one, pooled_two, rtol=1e-4, atol=1e-6)
    assert named_one.keys() == named_two.keys()
    for name, grad in named_one.items():
        torch.testing.assert_close(grad, named_two[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("interaction", ["dot", "cross", "projection", "fm", "dcn"])
def test_accumulation_adds_up(interaction: str) -> None:
    model, batch = make_model(interaction), make_batch(3, has_bags=True)
    optimizer = DenseOptimizer(OPTIMIZER, model.dense_parameters())
    head = FusedHead(model, LossRule("bce"), optimizer)
    whole = head(batch, look_up(model, batch), 9, lambda grad: None, accumulate=False)
    expected = optimizer.gradient.clone()
    parts = torch.zeros(())
    for k, micro in enumerate((batch.slice(0, 4), batch.slice(4, 9))):
        parts += head(micro, look_up(model, micro), 9, lambda grad: None, accumulate=k > 0)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(optimizer.gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("interaction", ["dot", "cross", "projection", "fm", "dcn", "dot_deep"])
def test_bf16_is_near_fp32(interaction: str) -> None:
    model, batch = make_model(interaction), make_batch(3, has_bags=False)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        copied = copy.deepcopy(model)
        optimizer = DenseOptimizer(OPTIMIZER, copied.dense_parameters(), compute_dtype=dtype)
        head = FusedHead(copied, LossRule("bce"), optimizer)
        losses.append(head(batch, look_up(copied, batch), 9, lambda grad: None, accumulate=False))
    # bf16 keeps 8 bits: 2^-8 a product, averaged over samples
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-2)
    assert losses[0] != losses[1]


def test_what_is_not_fused_is_said() -> None:
    assert why_not_fused(make_model(norm="layer")) == "the model has LayerNorm layers"
    assert why_not_fused(make_model(dropout=0.1)) == "the model has Dropout layers"
    deep = make_model("dcn")
    deep.interaction.deep_mlp.append(nn.Dropout(0.1))
    assert why_not_fused(deep) == "the model has Dropout layers"
