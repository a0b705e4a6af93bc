"""50 steps of the train step against the plain way's losses.

Golden file: loss_curve.json, made by `python -m tests.golden.loss_curve`.
"""

import json

import pytest
import torch

from fastdlrm.train.config import (
    DenseOptimizerConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
    TrainConfig,
)
from fastdlrm.train.step import TrainStep
from tests.golden.loss_curve import GOLDEN, LEARNING_RATE, NUM_STEPS, make_batch, make_model

TOLERANCE = {"fp32": 1e-5, "bf16": 0.02}
"""Absolute, of losses near 0.6 that fall to 0.4. float32 against float64 after 50 steps; bfloat16
keeps 8 bits of every activation."""

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def losses(rule: str, precision: str, device: str) -> list[float]:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = TrainConfig(
        global_batch_size=64,
        num_epochs=1,
        dense_optimizer=DenseOptimizerConfig(name="sgd", learning_rate=LEARNING_RATE["sgd"]),
        sparse_optimizer=SparseOptimizerConfig(name=rule, learning_rate=LEARNING_RATE[rule]),
        schedule=ScheduleConfig(name="constant"),
        precision=precision,
    )
    step = TrainStep(make_model().to(device).train(), config)
    return [step(make_batch(k).to(device), k).item() for k in range(NUM_STEPS)]


def golden(rule: str) -> list[float]:
    return json.loads(GOLDEN.read_text())["losses"][rule]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("rule", LEARNING_RATE)
def test_step_follows_the_plain_way(rule: str, precision: str, device: str) -> None:
    found, expected = torch.tensor(losses(rule, precision, device)), torch.tensor(golden(rule))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[precision])


@pytest.mark.parametrize("rule", LEARNING_RATE)
def test_the_curve_shows_learning(rule: str) -> None:
    """A flat curve would agree with anything."""
    curve = golden(rule)
    assert len(curve) == NUM_STEPS
    assert sum(curve[-10:]) < 0.85 * sum(curve[:10])
