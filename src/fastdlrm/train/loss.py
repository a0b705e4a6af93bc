"""Losses of logits against labels, each the sum over samples divided by one number.

Micro-batches of a batch add up to the batch's mean loss when all are divided by the batch's size.

Shapes: B batch.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdlrm.train.config import Loss

LossFunction = Callable[[Tensor, Tensor, float | None], Tensor]
"""Logits (B,), labels (B,), normalizer -> scalar. None divides by B: the batch's mean."""


def loss_function(name: Loss, class_weights: tuple[float, float] = (1.0, 1.0)) -> LossFunction:
    """A loss by its name in the config.

    Args:
        name: Of the loss.
        class_weights: Weight of a negative and of a positive sample ("weighted_bce").
    """
    if name == "bce":
        return bce
    if name == "mse":
        return mse
    return partial(weighted_bce, class_weights=class_weights)


def bce(logits: Tensor, labels: Tensor, normalizer: float | None = None) -> Tensor:
    """Binary cross-entropy of sigmoid(logits): -log p of the label."""
    total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return total / (normalizer or len(logits))


def weighted_bce(
    logits: Tensor,
    labels: Tensor,
    normalizer: float | None = None,
    *,
    class_weights: tuple[float, float],
) -> Tensor:
    """Binary cross-entropy, each sample times its class's weight; the weights do not normalise."""
    negative, positive = class_weights
    weights = negative + (positive - negative) * labels
    total = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")
    return total / (normalizer or len(logits))


def mse(logits: Tensor, labels: Tensor, normalizer: float | None = None) -> Tensor:
    """Squared difference of sigmoid(logits) and the label."""
    total = F.mse_loss(torch.sigmoid(logits), labels, reduction="sum")
    return total / (normalizer or len(logits))
