"""Bias, ReLU and their backward pass on the CPU against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.kernels.cpu import mlp
from fastdlrm.kernels.mlp import define_bias_relu_, define_relu_backward_, linear_relu

FEW = settings(max_examples=60, deadline=None)


@FEW
@given(B=st.integers(0, 70), N=st.integers(1, 40))
def test_forward(B: int, N: int) -> None:
    x, bias = torch.randn(B, N), torch.randn(N)
    expected = x.clone()
    define_bias_relu_(expected, bias)
    mlp.bias_relu_(x, bias)
    assert torch.equal(x, expected)


@FEW
@given(
    B=st.integers(1, 70),
    N=st.integers(1, 40),
    accumulate=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_backward(B: int, N: int, accumulate: bool, dtype: torch.dtype) -> None:
    grad, y = torch.randn(B, N).to(dtype), torch.randn(B, N).relu().to(dtype)
    y[0, 0] = -0.0
    expected, bias_grad = grad.clone(), torch.randn(N)
    expected_bias_grad = bias_grad.clone()
    define_relu_backward_(expected, y, expected_bias_grad, accumulate)
    mlp.relu_backward_(grad, y, bias_grad, accumulate)
    assert torch.equal(grad, expected)
    # a sum of up to 70 numbers of order 1 in another order
    torch.testing.assert_close(bias_grad, expected_bias_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_linear_relu(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((6, 5), (4, 5), (4,)))
    expected = torch.nn.functional.linear(x, weight, bias).relu()
    torch.testing.assert_close(linear_relu(x, weight, bias), expected)


def test_a_nan_stays() -> None:
    x = torch.tensor([[float("nan"), -1.0, 2.0]])
    mlp.bias_relu_(x, torch.zeros(3))
    assert x[0, 0].isnan()
    assert x[0, 1:].tolist() == [0, 2]
