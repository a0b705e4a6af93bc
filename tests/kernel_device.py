"""Where the kernels in Triton are tested: compiled on a GPU, else interpreted on the CPU.

Importing this skips a test module where triton is not installed.
"""

import pytest
import torch
from torch import Tensor

from fastdlrm.kernels.step_scalars import StepScalars

pytest.importorskip("triton", reason="needs triton")

IS_COMPILED = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_COMPILED else "cpu")
MARKS = [pytest.mark.gpu] if IS_COMPILED else []

# Triton 3.7's interpreter multiplies matrices of bfloat16 wrongly and cuts where it should round to
# it, so only a GPU computes in bfloat16 here.
HALVES = [torch.float16, torch.bfloat16] if IS_COMPILED else [torch.float16]
FLOATS = [torch.float32, *HALVES]


def assert_near(found: Tensor, exact: Tensor) -> None:
    """Hold a result against float64: sums in float32, then one rounding to the result's type."""
    assert exact.dtype == torch.float64
    rtol = max(torch.finfo(found.dtype).eps, 1e-5)
    atol = 1e-5 * float(exact.abs().amax()) if exact.numel() else 0.0
    torch.testing.assert_close(found.double().cpu(), exact.cpu(), rtol=rtol, atol=atol)


def draw(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on the device, the same ones everywhere."""
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def on_device(now: StepScalars) -> Tensor:
    """A step's numbers as a GPU's kernels read them."""
    return torch.tensor(now, dtype=torch.float32, device=DEVICE)
