"""Narrow tables' vectors projected: by hand, as drawn, in prediction, through the train step."""

import math

import pytest
import torch

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.predictor import Predictor
from fastdlrm.model.table_projection import Projected, TableProjection, build_projection
from fastdlrm.train.config import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from fastdlrm.train.step import TrainStep
from tests.training import DIM, bags, make_config, make_model, mixed_tables, single_ids, take
from tests.unit.model.test_build import build, make_schema

NARROW = {"a": 3, "b": DIM}
"""Of a, which features 0 and 2 share."""


def test_by_hand() -> None:
    projection = TableProjection([Projected(1, 0, 2)], 3, None).to_empty(device="cpu")
    with torch.no_grad():
        projection.weights[0].copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]))
    pooled = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 6.0, 0.0]]])
    # 5 + 2 * 6; 3 * 5 + 4 * 6; 6
    assert projection(pooled).tolist() == [[[1, 2, 3], [17, 39, 6]]]
    assert (projection.num_parameters, projection.num_products) == (6, 6)


def test_drawn_as_xavier_for_tables_that_are_looked_up() -> None:
    schema = make_schema(2, 3)
    keys = {"embedding_dim": 4, "bottom_mlp": (4,), "top_mlp": (6,), "table_projection": True}
    config = ModelConfig(**keys, table_dims={"t0": 1, "t1": 4, "t2": 3})
    model = build(2, 3, **keys | {"table_dims": config.table_dims})
    shapes = [tuple(weight.shape) for weight in model.table_projection.weights]
    assert shapes == [(4, 1), (4, 3)]
    assert model.table_projection.features == [(0, 0, 1), (2, 1, 3)]
    names = [n for n in model.state_tensors() if "projection" in n]
    assert names == ["table_projection.weights.0", "table_projection.weights.1"]
    generator = torch.Generator().manual_seed(1)
    large = TableProjection([Projected(0, 0, 300)], 500, generator).weights[0].detach()
    bound = math.sqrt(6 / 800)
    assert large.abs().max() <= bound
    assert float(large.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    undrawn = build_projection(config, schema, None)
    assert undrawn is not None
    assert undrawn.weights[0].is_meta
    assert undrawn.num_products == 4 * 1 + 4 * 3
    assert build(2, 3, table_projection=True).table_projection is None


@pytest.mark.parametrize(
    ("interaction", "kind", "parts"),
    [("dot", "single", 1), ("dot", "bags", 3), ("cross", "single", 3), ("projection", "single", 1)],
)
def test_a_step_is_that_of_autograd(interaction: str, kind: str, parts: int) -> None:
    """SGD of every number, by autograd through the whole model, and by the step's fused head."""
    model = make_model(interaction, tables=mixed_tables(NARROW), projected={"a": 3})
    plain = make_model(interaction, tables=mixed_tables(NARROW), projected={"a": 3})
    rate = {"name": "sgd", "learning_rate": 0.1}
    config = make_config(
        dense_optimizer=DenseOptimizerConfig(**rate),
        sparse_optimizer=SparseOptimizerConfig(**rate),
        schedule=ScheduleConfig(name="constant"),
        gradient_accumulation_steps=parts,
    )
    step = TrainStep(model, config)
    before = model.table_projection.weights[0].detach().clone()
    for k in range(3):
        batch = single_ids(k) if kind == "single" else bags(k)
        logits = plain(batch.dense, batch.sparse)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= 0.1 * parameter.grad
        torch.testing.assert_close(step(batch, k), loss.detach(), rtol=1e-5, atol=1e-6)
    found, expected = dict(model.named_parameters()), dict(plain.named_parameters())
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.allclose(model.table_projection.weights[0], before)


@pytest.mark.parametrize("dim", [4, 6])
def test_widths_that_the_step_pads(dim: int) -> None:
    """Matrices of widths that are no multiple of 8 lie padded in the step's tensors."""
    keys = {"embedding_dim": dim, "bottom_mlp": (5, dim), "table_projection": True}
    dims = {"t0": 1, "t1": 3}
    model, plain = (build(2, 3, **keys, table_dims=dims) for _ in range(2))
    rate = {"name": "sgd", "learning_rate": 0.1}
    config = make_config(
        dense_optimizer=DenseOptimizerConfig(**rate),
        sparse_optimizer=SparseOptimizerConfig(**rate),
        schedule=ScheduleConfig(name="constant"),
    )
    batch = Batch.allocate(9, 2, 3)
    batch.sparse.ids.copy_(torch.arange(27) % 10)
    batch.dense.copy_(torch.arange(18.0).view(9, 2) / 18)
    batch.labels.copy_(torch.arange(9) % 2)
    step = TrainStep(model.train(), config)
    for k in range(2):
        logits = plain(batch.dense, batch.sparse)
        plain.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= 0.1 * parameter.grad
        step(batch, k)
    found = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=1e-4, atol=1e-6, msg=name)


def test_products_in_bf16_are_near() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        model = make_model(tables=mixed_tables(NARROW), projected={"a": 3})
        step = TrainStep(model, make_config("adagrad", "adagrad", precision=precision))
        losses.append(take(step, [single_ids(k) for k in range(3)]))
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)


def test_autograds_head_takes_the_same_steps() -> None:
    """With dropout autograd computes; at a rate of almost 0 it drops nothing."""
    config = make_config("adagrad", "adagrad")
    steps = [
        TrainStep(
            make_model(tables=mixed_tables(NARROW), projected={"a": 3}, dropout=dropout), config
        )
        for dropout in (0.0, 1e-30)
    ]
    losses = [take(step, [single_ids(k) for k in range(3)]) for step in steps]
    torch.testing.assert_close(*losses)
    ends = [step.model.table_projection.weights[0] for step in steps]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_of_a_sample_are_its_own(dtype: torch.dtype) -> None:
    model = make_model(tables=mixed_tables({"a": 3, "b": 2}), projected={"a": 3, "b": 2}).eval()
    batch = single_ids(1, num_samples=200)
    predictor = Predictor(model, dtype)
    whole = predictor(batch.dense, batch.sparse)
    with torch.no_grad():
        expected = model(batch.dense, batch.sparse)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(whole, expected, rtol=tolerance, atol=tolerance)
    for start, stop in ((0, 1), (3, 20), (50, 200)):
        part = batch.slice(start, stop)
        assert torch.equal(predictor(part.dense, part.sparse), whole[start:stop])


def test_a_model_without_sparse_features() -> None:
    model = build(2, 0, interaction="cat", table_projection=True)
    empty = SparseBatch(
        ids=torch.zeros(0, dtype=torch.int32), lengths=None, weights=None, num_features=0
    )
    assert Predictor(model.eval())(torch.ones(3, 2), empty).isfinite().all()
