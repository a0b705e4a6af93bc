"""A factorization machine against its sum over pairs, its backward pass against autograd."""

import pytest
import torch
from torch import Tensor

from fastdlrm.kernels.factorization import factorization, factorization_backward
from tests import oracles

B, F = 20, 5


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_backward_is_autograd(
    dim: int, has_dense: bool, dtype: torch.dtype, tolerance: float
) -> None:
    vector = draw(1, B, dim).to(dtype) if has_dense else None
    pooled = draw(2, F, B, dim).to(dtype).transpose(0, 1)
    upstream = draw(3, B, 1)

    # float64 by autograd, from the very numbers
    leaves = [x.double().clone().requires_grad_() for x in (pooled, vector) if x is not None]
    result = factorization(leaves[1] if has_dense else None, leaves[0])
    of_pairs = oracles.factorization(
        leaves[1].detach().numpy() if has_dense else None, leaves[0].detach().numpy()
    )
    torch.testing.assert_close(result.detach(), torch.from_numpy(of_pairs))
    result.backward(upstream)

    found = factorization(vector, pooled)
    # of numbers of 16 bits no sum is rounded to 16 bits
    torch.testing.assert_close(found.double(), result.detach(), rtol=1e-5, atol=1e-4)
    grad_vector, grad_pooled = factorization_backward(upstream, vector, pooled)
    assert (grad_vector is None) == (not has_dense)
    for got, leaf in zip((grad_pooled, grad_vector), leaves, strict=False):
        assert got.dtype == dtype
        want = leaf.grad
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()
