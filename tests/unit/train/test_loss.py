"""Losses by hand and by the oracle; micro-batches add up to the batch."""

import math

import pytest
import torch

from fastdlrm.train.loss import loss_function
from tests import oracles

LOGITS = torch.tensor([0.0, math.log(3), -2.0])
LABELS = torch.tensor([1.0, 0.0, 1.0])


def test_bce_by_hand() -> None:
    # p = 1/2 for a positive: log 2; p = 3/4 for a negative: -log(1/4) = log 4
    found = loss_function("bce")(LOGITS[:2], LABELS[:2], None)
    assert found.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_bce_matches_the_oracle() -> None:
    found = loss_function("bce")(LOGITS, LABELS, None)
    expected = oracles.bce(LOGITS.tolist(), LABELS.tolist())
    assert found.item() == pytest.approx(sum(expected) / 3, rel=1e-6)


def test_bce_of_certain_logits_is_finite() -> None:
    # -log sigmoid(-200) = 200 + log(1 + e^-200)
    found = loss_function("bce")(torch.tensor([-200.0]), torch.tensor([1.0]), None)
    assert found.item() == pytest.approx(200)


def test_weighted_bce_by_hand() -> None:
    # the positive counts 3 times, the negative half; the sum is still divided by 2
    found = loss_function("weighted_bce", (0.5, 3.0))(LOGITS[:2], LABELS[:2], None)
    assert found.item() == pytest.approx((3 * math.log(2) + 0.5 * math.log(4)) / 2)


def test_mse_by_hand() -> None:
    # (1/2 - 1)^2 = 1/4; (3/4 - 0)^2 = 9/16; mean 13/32
    assert loss_function("mse")(LOGITS[:2], LABELS[:2], None).item() == pytest.approx(13 / 32)


@pytest.mark.parametrize("name", ["bce", "weighted_bce", "mse"])
def test_micro_batches_add_up_to_the_batch(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator, dtype=torch.float64)
    labels = (torch.rand(50, generator=generator) < 0.3).double()
    loss = loss_function(name, (0.5, 3.0) if name == "weighted_bce" else (1.0, 1.0))
    parts = [loss(logits[a:b], labels[a:b], 50) for a, b in ((0, 13), (13, 14), (14, 50))]
    torch.testing.assert_close(sum(parts), loss(logits, labels, None))
