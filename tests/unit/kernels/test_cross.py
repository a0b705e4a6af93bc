"""The written-out backward pass of a cross network against autograd, every layer's tensors."""

import pytest
import torch

from fastdlrm.kernels.cross import CrossLayer, cross_backward, cross_forward
from tests.gpu import ON_GPU

B, V, D, RANK, NUM_LAYERS = 40, 3, 8, 16, 3
W = V * D

DEVICES = [
    pytest.param("cpu", torch.float64, 1e-10),
    pytest.param("cpu", torch.float32, 1e-4),
    ON_GPU,
]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize(("device", "dtype", "tolerance"), DEVICES)
def test_backward_is_autograd(
    device: str, dtype: torch.dtype, tolerance: float, has_dense: bool, accumulate: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    grads_in = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def before(*shape: int) -> torch.Tensor:
        return torch.full(shape, 2.0, dtype=grads_in, device=device)

    layers = [
        CrossLayer(
            draw(RANK, W) / W**0.5,
            draw(W, RANK) / RANK**0.5,
            draw(W),
            before(RANK, W),
            before(W, RANK),
            before(W),
        )
        for _ in range(NUM_LAYERS)
    ]
    x, upstream = draw(B, W), draw(B, W)
    x[:, :D].relu_()  # the dense vector comes out of a ReLU

    # float64 by autograd, from the very numbers
    leaves = [[p.double().clone().requires_grad_() for p in layer[:3]] for layer in layers]
    start = x.double().clone().requires_grad_()
    y = start
    for v, u, bias in leaves:
        y = start * (y @ v.t() @ u.t() + bias) + y
    y.backward(upstream.double())

    kept = cross_forward(x, layers)
    assert_near(kept.inputs[-1], y, tolerance)
    grad_dense, grad_others = cross_backward(
        upstream, kept, layers, (V, D), has_dense=has_dense, accumulate=accumulate
    )
    expected = start.grad.view(B, V, D)
    if has_dense:
        assert_near(grad_dense, expected[:, 0] * (x[:, :D] > 0), tolerance)
    else:
        assert grad_dense.numel() == 0
    assert_near(grad_others, expected[:, int(has_dense) :], tolerance)
    for layer, of_layer in zip(layers, leaves, strict=True):
        for found, leaf in zip(layer[3:], of_layer, strict=True):
            assert_near(found - (2.0 if accumulate else 0.0), leaf.grad, tolerance)


def assert_near(found: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    """Within a share of the largest number: sums cancel."""
    largest = float(exact.detach().abs().max())
    torch.testing.assert_close(
        found.double(), exact.detach(), rtol=tolerance, atol=tolerance * largest
    )
