"""DCN's cross network in closed form against the paper's, its backward pass against autograd."""

import pytest
import torch
from torch import Tensor

from fastdlrm.kernels.cross_vector import CrossVectors, cross_vector, cross_vector_backward
from tests import oracles
from tests.gpu import ON_GPU

B, W, NUM_LAYERS = 40, 12, 4

DEVICES = [
    pytest.param("cpu", torch.float64, 1e-10),
    pytest.param("cpu", torch.float32, 1e-4),
    pytest.param("cpu", torch.bfloat16, 5e-2),
    ON_GPU,
]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("device", "dtype", "tolerance"), DEVICES)
def test_backward_is_autograd(
    device: str, dtype: torch.dtype, tolerance: float, accumulate: bool
) -> None:
    x, weight, bias, upstream = (
        numbers.to(device, dtype)
        for numbers in (
            draw(1, B, W),
            draw(2, NUM_LAYERS, W) / W,
            draw(3, NUM_LAYERS, W),
            draw(4, B, W),
        )
    )
    grads_in = torch.float64 if dtype == torch.float64 else torch.float32
    before = [torch.full((NUM_LAYERS, W), 2.0, dtype=grads_in, device=device) for _ in range(2)]
    layers = CrossVectors(weight, bias, *before)

    # float64 by autograd, from the very numbers
    leaves = [numbers.double().clone().requires_grad_() for numbers in (x, weight, bias)]
    result = cross_vector(*leaves)
    layer_pairs = list(zip(*(leaf.detach().cpu().numpy() for leaf in leaves[1:]), strict=True))
    paper = oracles.cross_vector_network(leaves[0].detach().cpu().numpy(), layer_pairs)
    torch.testing.assert_close(result.detach().cpu(), torch.from_numpy(paper))
    result.backward(upstream.double())

    found = cross_vector(x, weight, bias)
    grad = cross_vector_backward(upstream, x, layers, accumulate)
    assert found.dtype == grad.dtype == dtype
    added = 2.0 if accumulate else 0.0
    for got, want in (
        (found, result.detach()),
        (grad, leaves[0].grad),
        (layers.weight_grad - added, leaves[1].grad),
        (layers.bias_grad - added, leaves[2].grad),
    ):
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()
