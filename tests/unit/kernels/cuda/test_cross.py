"""Backward of a cross network: the one-pass kernel against the definition in float64."""

import pytest
import torch

from fastdlrm.kernels.cross import define_cross_input_grad
from fastdlrm.kernels.cuda.cross import cross_input_grad
from tests.kernel_device import FLOATS, MARKS, assert_near, draw

pytestmark = MARKS


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize(
    ("B", "num_vectors", "dim", "num_layers"),
    [(1, 2, 8, 1), (5, 3, 4, 2), (40, 2, 16, 3), (17, 4, 20, 2), (130, 3, 128, 3)],
)
def test_gradient_of_the_start(
    B: int, num_vectors: int, dim: int, num_layers: int, has_dense: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    W = -(-num_vectors * dim // 8) * 8  # as the dense optimizer pads it
    start = draw(generator, B, W, dtype=dtype)
    grads, wide = (draw(generator, num_layers, B, W, dtype=dtype) for _ in range(2))
    grad = draw(generator, B, W + 8, dtype=dtype)[:, :W]  # rows may be apart
    arguments = (grad, grads, wide, start)
    found = cross_input_grad(*arguments, num_vectors, dim, has_dense)
    exact = define_cross_input_grad(*(t.double() for t in arguments), num_vectors, dim, has_dense)
    assert found[1].shape == (B, num_vectors - has_dense, dim)
    assert found[1].transpose(0, 1).is_contiguous()
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert_near(one, other)


def test_no_samples() -> None:
    empty = draw(torch.Generator(), 0, 8)
    grads = empty.expand(2, 0, 8)
    found = cross_input_grad(empty, grads, grads, empty, 2, 4, True)
    assert [x.shape for x in found] == [(0, 4), (0, 1, 4)]
