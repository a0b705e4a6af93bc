"""Codes of activations against their definition, and both against numbers worked by hand."""

import pytest
import torch

from fastdlrm.kernels.activation_codes import activation_codes, define_activation_codes


def test_by_hand() -> None:
    # scale 0.5, zero 10: 0 -> 10; 1 -> 12; 0.25 is half a step: to the even 0 -> 10; 0.75 -> 12
    # (1.5 steps, even 2); -4.9 -> 10 - 10 = 0; -7 and 200 are cut
    x = torch.tensor([0, 1, 0.25, 0.75, -4.9, -7, 200])
    assert activation_codes(x, 0.5, 10).tolist() == [10, 12, 10, 12, 0, 0, 255]


@pytest.mark.parametrize(("scale", "zero"), [(0.1, 0), (0.013, 97), (3.0, 255)])
@pytest.mark.parametrize("shape", [(3, 5), (100, 512), (0, 4), (70_000, 2)])
def test_kernel_is_the_definition(shape: tuple[int, int], scale: float, zero: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 10
    if x.numel() >= 15:
        x.view(-1)[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
        x.view(-1)[5:15] = torch.arange(-5, 5) * scale / 2
    found = activation_codes(x, scale, zero)
    assert found.dtype == torch.uint8
    assert torch.equal(found, define_activation_codes(x, 1 / scale, zero))
    strided = torch.empty(*shape, 2)
    strided[..., 0] = x
    assert torch.equal(activation_codes(strided[..., 0], scale, zero), found)
