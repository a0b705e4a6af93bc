"""Activations as 8-bit codes: what goes into a layer of integers."""

from typing import cast

import torch
from torch import Tensor

from fastdlrm.kernels.library import define, implement, on_first_call

LARGEST_CODE = 255


def activation_codes(x: Tensor, scale: float, zero: int) -> Tensor:
    """The nearest code of each number: round(x / scale) + zero, cut to 0 .. 255.

    Args:
        x: Any shape, float32.
        scale: Between neighbouring codes, above 0.
        zero: The code of 0.

    Returns:
        Shape as `x`, uint8; of two codes equally near the even multiple of the scale, NaN is 0.
    """
    return cast(Tensor, _activation_codes(x, 1 / scale, zero))


def define_activation_codes(x: Tensor, steps: float, zero: int) -> Tensor:
    """The definition; `steps` is 1 / scale."""
    factor = torch.tensor(steps, dtype=torch.float32, device=x.device)
    codes = torch.round(x * factor).add_(zero).clamp_(0, LARGEST_CODE)
    return torch.nan_to_num_(codes, nan=0.0).to(torch.uint8)


_activation_codes = define(
    "activation_codes(Tensor x, float steps, int zero) -> Tensor",
    define_activation_codes,
    fake=lambda x, steps, zero: torch.empty_like(x, dtype=torch.uint8),
)
implement(
    "activation_codes",
    "cpu",
    on_first_call("fastdlrm.kernels.cpu.activation_codes", "activation_codes"),
)
