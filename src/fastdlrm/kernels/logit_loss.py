"""The last linear layer and the loss on its logit, with all gradients, in one pass over the batch.

In float32 whatever the type of the activations: a logit in 16 bits would move probabilities.

Shapes: B batch, K inputs of the layer.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdlrm.kernels.library import has_gpu_kernels
from fastdlrm.kernels.mlp import Layer, relu_backward_

if has_gpu_kernels():
    from fastdlrm.kernels.cuda import logit_loss as gpu

Loss = Literal["bce", "weighted_bce", "mse"]


class LossRule(NamedTuple):
    """Which loss.

    Attributes:
        name: bce on logits; weighted_bce weighs the classes; mse on probabilities.
        negative_weight: Weight of a sample of label 0 (weighted_bce).
        positive_weight: Weight of a sample of label 1 (weighted_bce).
    """

    name: Loss = "bce"
    negative_weight: float = 1.0
    positive_weight: float = 1.0


class LogitLoss(NamedTuple):
    """What `logit_loss` returns.

    Attributes:
        loss: A float32 scalar.
        grad: Gradient of the activations, of their shape and type.
        grad_sum: Column sums of `grad`, shape (K,), float32.
    """

    loss: Tensor
    grad: Tensor
    grad_sum: Tensor


def logit_loss(
    x: Tensor,
    layer: Layer,
    labels: Tensor,
    rule: LossRule,
    *,
    normalizer: float,
    relu: bool,
    accumulate: bool = False,
) -> LogitLoss:
    """Loss of sigmoid(x w + b) against the labels, and its gradients.

    Args:
        x: Activations, shape (B, K).
        layer: One output: weight of shape (1, K), float32. Its gradients are written.
        labels: Shape (B,), float32.
        rule: Loss.
        normalizer: What the sum over samples is divided by.
        relu: Whether `x` came out of a ReLU whose input's gradient is asked for instead.
        accumulate: Whether to add to the layer's gradients instead.
    """
    if x.is_cuda and has_gpu_kernels():
        found = gpu.logit_loss(
            x,
            *layer,
            labels,
            loss_name=rule.name,
            class_weights=(rule.negative_weight, rule.positive_weight),
            normalizer=normalizer,
            relu=relu,
            accumulate=accumulate,
        )
        return LogitLoss(*found)
    inputs = x.float()
    logits = F.linear(inputs, layer.weight, layer.bias).squeeze(1)
    loss, slope = _loss_and_slope(logits, labels, rule)
    slope_B1 = (slope / normalizer).unsqueeze(1)
    weight_grad, bias_grad = slope_B1.t() @ inputs, slope_B1.sum(0)
    if accumulate:
        layer.weight_grad.add_(weight_grad)
        layer.bias_grad.add_(bias_grad)
    else:
        layer.weight_grad.copy_(weight_grad)
        layer.bias_grad.copy_(bias_grad)
    grad = (slope_B1 * layer.weight).to(x.dtype)
    grad_sum = torch.empty(x.shape[1], dtype=layer.bias_grad.dtype, device=x.device)
    if relu:
        relu_backward_(grad, x, grad_sum, False)
    else:
        torch.sum(grad, 0, dtype=grad_sum.dtype, out=grad_sum)
    return LogitLoss(loss.sum() / normalizer, grad, grad_sum)


def _loss_and_slope(logits: Tensor, labels: Tensor, rule: LossRule) -> tuple[Tensor, Tensor]:
    """Each sample's loss, and its derivative by the logit; shape (B,) both."""
    probabilities = torch.sigmoid(logits)
    difference = probabilities - labels
    if rule.name == "mse":
        return difference.square(), 2 * difference * probabilities * (1 - probabilities)
    loss = F.softplus(logits) - labels * logits  # -log p of the label
    if rule.name == "weighted_bce":
        weights = rule.negative_weight + (rule.positive_weight - rule.negative_weight) * labels
        return loss * weights, difference * weights
    return loss, difference
