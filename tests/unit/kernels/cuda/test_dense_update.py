"""The MLPs' optimizer in one kernel against its definition in float64."""

import pytest
import torch

from fastdlrm.kernels import dense_update as definition
from fastdlrm.kernels.cuda import dense_update as kernels
from fastdlrm.kernels.dense_update import DenseRule
from fastdlrm.kernels.step_scalars import StepScalars
from tests.kernel_device import DEVICE, HALVES, MARKS, assert_near, draw, on_device

pytestmark = MARKS

NOW = StepScalars(0.1, 0.19, 0.002, gradient_scale=0.5)


@pytest.mark.parametrize("size", [1, 1000, 1024, 3001])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("copy_dtype", [None, *HALVES])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "adamw"])
def test_is_the_definition(
    name: str, copy_dtype: torch.dtype | None, weight_decay: float, size: int
) -> None:
    generator, rule = torch.Generator().manual_seed(0), DenseRule(name, 1e-2, weight_decay)
    master, gradient = draw(generator, size), draw(generator, size)
    state = {key: draw(generator, size).square() for key in rule.zero_state(master)}
    copy = None if copy_dtype is None else torch.empty(size, dtype=copy_dtype, device=DEVICE)
    exact_master, exact_gradient = master.double().cpu(), gradient.double().cpu()
    exact_state = {key: x.double().cpu() for key, x in state.items()}
    scalars = torch.tensor(NOW, dtype=torch.float64)
    definition.dense_update_(exact_master, exact_state, exact_gradient, rule, scalars)
    kernels.dense_update_(
        master, copy, list(state.values()), gradient, on_device(NOW), **rule._asdict()
    )
    assert_near(master, exact_master)
    for key, x in state.items():
        assert_near(x, exact_state[key])
    if copy is not None:
        assert torch.equal(copy, master.to(copy.dtype))
