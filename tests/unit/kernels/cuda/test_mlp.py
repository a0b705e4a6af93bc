"""Backward of linear layers: the masked product against float64, and what it takes."""

import pytest
import torch

from fastdlrm.kernels.cuda.mlp import can_mask_input_grad, column_sums, masked_input_grad
from tests.kernel_device import DEVICE, HALVES, IS_COMPILED, MARKS, assert_near, draw

pytestmark = MARKS

needs_gpu = pytest.mark.skipif(not IS_COMPILED, reason="needs a CUDA device")
needs_copy_engine = pytest.mark.skipif(
    IS_COMPILED and torch.cuda.get_device_capability() < (9, 0),
    reason="needs a CUDA device of capability 9.0 or more",
)


@needs_copy_engine
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("B", "N", "K"), [(1, 8, 8), (9, 16, 40), (130, 72, 136), (256, 128, 128), (300, 200, 264)]
)
def test_masked_product(B: int, N: int, K: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    grad, weight = draw(generator, B, N, dtype=dtype), draw(generator, N, K, dtype=dtype)
    x = draw(generator, B, K, dtype=dtype).relu()
    found, sums = masked_input_grad(grad, weight, x)
    assert_near(found, (grad.double() @ weight.double()) * (x > 0))
    # the sums are of the products as they were rounded
    assert_near(sums.sum(0), found.double().sum(0))


@needs_copy_engine
def test_masked_product_of_wider_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    grad = draw(generator, 20, 64, dtype=torch.float16)[:, 8:32]
    weight = draw(generator, 24, 80, dtype=torch.float16)[:, 16:72]
    x = draw(generator, 20, 128, dtype=torch.float16)[:, 64:120]
    found, _ = masked_input_grad(grad, weight, x)
    assert_near(found, (grad.double() @ weight.double()) * (x > 0))


def test_the_cpu_has_another_way() -> None:
    grad, weight, x = (torch.ones(8, 8, dtype=torch.bfloat16) for _ in range(3))
    assert not can_mask_input_grad(grad, weight, x)


@pytest.mark.gpu
@needs_gpu
@needs_copy_engine
def test_what_the_masked_product_takes() -> None:
    def ones(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=DEVICE)

    assert can_mask_input_grad(ones(5, 16), ones(16, 24), ones(5, 24))
    assert not can_mask_input_grad(*(t.half() for t in (ones(5, 16), ones(16, 24), ones(5, 24))))
    assert not can_mask_input_grad(ones(5, 15), ones(15, 24), ones(5, 24))
    assert not can_mask_input_grad(ones(5, 16), ones(16, 20), ones(5, 20))
    assert not can_mask_input_grad(ones(16, 5).t(), ones(16, 24), ones(5, 24))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(1, 1), (9, 3), (1000, 24), (70, 512)])
def test_column_sums(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = draw(torch.Generator().manual_seed(0), *shape, dtype=dtype)
    out = torch.empty(shape[1], device=DEVICE)
    column_sums(x, out)
    torch.testing.assert_close(out.double(), x.double().sum(0), rtol=1e-5, atol=1e-3)
