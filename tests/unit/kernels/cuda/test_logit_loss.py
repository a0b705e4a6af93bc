"""The last layer's kernel against autograd in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdlrm.kernels.cuda.logit_loss import logit_loss
from tests.kernel_device import DEVICE, FLOATS, MARKS, assert_near, draw

pytestmark = MARKS

LOSSES = ["bce", "weighted_bce", "mse"]
CLASS_WEIGHTS = (0.7, 2.0)


def by_autograd(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, loss: str, normalizer: float
) -> tuple[Tensor, ...]:
    """Loss and its gradients by x, weight and bias, in float64."""
    x, weight, bias = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    logits, labels = (x @ weight.t() + bias).squeeze(1), labels.double()
    if loss == "mse":
        total = (torch.sigmoid(logits) - labels).square().sum()
    else:
        weights = torch.ones_like(labels)
        if loss == "weighted_bce":
            weights = torch.where(labels == 1, CLASS_WEIGHTS[1], CLASS_WEIGHTS[0])
        total = F.binary_cross_entropy_with_logits(
            logits, labels, weights.double(), reduction="sum"
        )
    total = total / normalizer
    return total.detach(), *torch.autograd.grad(total, (x, weight, bias))


def assert_is_autograd(
    x: Tensor, loss: str, *, relu: bool = True, accumulate: bool = False, scale: float = 0.3
) -> None:
    B, K = x.shape
    generator = torch.Generator().manual_seed(4)
    weight, bias = scale * draw(generator, 1, K), draw(generator, 1)
    labels = torch.randint(0, 2, (B,), generator=generator).to(DEVICE, torch.float32)
    weight_grad, bias_grad = draw(generator, 1, K), draw(generator, 1)
    before = (weight_grad.double(), bias_grad.double())
    normalizer = B + 3  # a micro-batch is divided by the whole batch's size
    found_loss, grad, grad_sum = logit_loss(
        x, weight, bias, weight_grad, bias_grad, labels, loss_name=loss,
        class_weights=CLASS_WEIGHTS, normalizer=normalizer, relu=relu, accumulate=accumulate,
    )  # fmt: skip
    exact = by_autograd(x, weight, bias, labels, loss, normalizer)
    exact_loss, exact_grad, exact_weight_grad, exact_bias_grad = exact
    if relu:
        exact_grad = exact_grad * (x > 0)
    if accumulate:
        exact_weight_grad, exact_bias_grad = (
            old + new for old, new in zip(before, (exact_weight_grad, exact_bias_grad), strict=True)
        )
    assert (grad.dtype, found_loss.dtype, grad_sum.dtype) == (
        x.dtype,
        torch.float32,
        torch.float32,
    )
    assert_near(found_loss, exact_loss)
    assert_near(grad, exact_grad)
    assert_near(weight_grad, exact_weight_grad)
    assert_near(bias_grad, exact_bias_grad)
    # the sum is of the gradients as they were rounded
    exact_sum, size = grad.double().sum(0), grad.double().abs().sum(0).max()
    torch.testing.assert_close(grad_sum.double(), exact_sum, rtol=1e-5, atol=1e-6 * size.item())


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (130, 20), (9, 128), (70, 300)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("loss", LOSSES)
def test_is_autograd(loss: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = draw(torch.Generator().manual_seed(0), *shape, dtype=dtype).relu()
    assert_is_autograd(x, loss)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_with_and_without(loss: str, accumulate: bool, relu: bool) -> None:
    x = draw(torch.Generator().manual_seed(0), 9, 20)
    assert_is_autograd(x, loss, relu=relu, accumulate=accumulate)


def test_more_programs_than_are_added_at_a_time() -> None:
    assert_is_autograd(draw(torch.Generator().manual_seed(0), 64 * 64 + 70, 3), "bce")


def test_rows_with_a_stride() -> None:
    assert_is_autograd(draw(torch.Generator().manual_seed(0), 9, 30)[:, 4:24], "bce")


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_far_from_zero(loss: str) -> None:
    """Where e^-x overflows, or 1 - p is 0 in float32."""
    assert_is_autograd(draw(torch.Generator().manual_seed(0), 40, 5), loss, scale=60.0)
