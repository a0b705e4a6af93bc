"""The case of a written-out backward pass that a GPU computes: device, type, tolerance."""

import pytest
import torch

ON_GPU = pytest.param(
    "cuda",
    torch.bfloat16,
    5e-2,
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
