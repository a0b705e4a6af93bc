"""The written-out backward pass against autograd, every layer's weight and bias."""

from itertools import pairwise

import pytest
import torch

from fastdlrm.kernels.mlp import Layer, mlp_backward, mlp_forward

WIDTHS = (16, 64, 128, 24, 20)
"""The last is no multiple of 8: on a GPU its layer goes another way than those below it."""

DEVICES = [
    pytest.param("cpu", torch.float32, 1e-4),
    pytest.param(
        "cuda",
        torch.bfloat16,
        5e-2,
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("knows_sum", [False, True])
@pytest.mark.parametrize(("device", "dtype", "tolerance"), DEVICES)
def test_backward_is_autograd(
    device: str, dtype: torch.dtype, tolerance: float, knows_sum: bool, accumulate: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    layers = [
        Layer(
            draw(n, k) / k**0.5,
            draw(n),
            torch.full((n, k), 2.0, device=device),
            torch.full((n,), 2.0, device=device),
        )
        for k, n in pairwise(WIDTHS)
    ]
    x, upstream = draw(200, WIDTHS[0]), draw(200, WIDTHS[-1])
    # float64 by autograd, from the very numbers
    parameters = [(p.weight.double(), p.bias.double()) for p in layers]
    leaves = [t.requires_grad_() for pair in parameters for t in pair]
    start = x.double().requires_grad_()
    y = start
    for weight, bias in parameters:
        y = torch.relu(y @ weight.t() + bias)
    y.backward(upstream.double())

    activations = mlp_forward(x, layers)
    grad = torch.where(activations[-1] > 0, upstream, 0)
    grad_sum = grad.float().sum(0) if knows_sum else None
    found = mlp_backward(
        grad,
        activations,
        layers,
        needs_input_grad=True,
        accumulate=accumulate,
        grad_sum=grad_sum,
    )
    before = 2.0 if accumulate else 0.0
    ours = [found, *(g - before for layer in layers for g in (layer.weight_grad, layer.bias_grad))]
    for one, leaf in zip(ours, [start, *leaves], strict=True):
        assert one is not None
        assert leaf.grad is not None
        error = (one.double() - leaf.grad).norm() / leaf.grad.norm()
        assert error < tolerance
