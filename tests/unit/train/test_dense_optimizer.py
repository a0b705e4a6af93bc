"""The MLPs' optimizer against torch.optim and by hand; flat storage, padding, state by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastdlrm.train.config import DenseOptimizerConfig
from fastdlrm.train.dense_optimizer import DenseOptimizer
from tests.training import restore

NAMES = ["sgd", "adagrad", "adam", "adamw"]


def config(name: str, eps: float = 0.1, weight_decay: float = 0.2) -> DenseOptimizerConfig:
    return DenseOptimizerConfig(name=name, learning_rate=0.1, eps=eps, weight_decay=weight_decay)


def parameters(device: str = "cpu") -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (1, 5), "b.bias": (1,)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(device))
        for name, shape in shapes.items()
    }


def set_gradients(params: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params.values():
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        if parameter.grad is None:
            parameter.grad = drawn
        else:
            parameter.grad.copy_(drawn)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # w = 2, g = 0.5, lr = 0.1, weight decay 0.2: gradient 0.5 + 0.2 * 2 = 0.9
        ("sgd", 2 - 0.1 * 0.9),
        # the sum of squares is 0.81: 0.1 * 0.9 / (0.9 + 0.1)
        ("adagrad", 2 - 0.1 * 0.9 / (0.9 + 0.1)),
        # first step, bias corrected: m' = g, v' = g^2
        ("adam", 2 - 0.1 * 0.9 / (0.9 + 0.1)),
        # decay apart: 2 * (1 - 0.1 * 0.2), then the step with g alone
        ("adamw", 2 * 0.98 - 0.1 * 0.5 / (0.5 + 0.1)),
    ],
)
def test_first_step_by_hand(name: str, expected: float) -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = DenseOptimizer(config(name), {"w": parameter})
    optimizer.gradient[0] = 0.5
    optimizer.step(0.1)
    assert parameter.item() == pytest.approx(expected)


@pytest.mark.parametrize("width_multiple", [1, 8])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.1, eps=0.1, weight_decay=0.2)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1, eps=0.1, weight_decay=0.2)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, eps=0.1, weight_decay=0.2)),
    ],
)
def test_is_torch_optim(
    name: str, make: Callable[[list[Tensor]], torch.optim.Optimizer], width_multiple: int
) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = DenseOptimizer(config(name), ours, width_multiple=width_multiple)
    reference = make(list(theirs.values()))
    for seed in range(4):
        set_gradients(ours, seed)
        set_gradients(theirs, seed)
        optimizer.step(0.1)
        reference.step()
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_scale_acts_on_the_gradient_before_the_decay() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = DenseOptimizer(config("sgd"), {"w": parameter})
    optimizer.gradient[0] = 0.5
    optimizer.step(0.1, torch.tensor(0.1))
    assert parameter.item() == pytest.approx(2 - 0.1 * (0.05 + 0.4))


def test_parameters_keep_their_values_and_become_views() -> None:
    params, before = parameters(), parameters()
    optimizer = DenseOptimizer(config("sgd"), params, width_multiple=8)
    for name, parameter in params.items():
        assert torch.equal(parameter, before[name])
    optimizer.master.zero_()
    assert not any(parameter.any() for parameter in params.values())


@pytest.mark.parametrize("name", NAMES)
def test_padding_stays_zero(name: str) -> None:
    params = parameters()
    optimizer = DenseOptimizer(config(name), params, width_multiple=8)
    for seed in range(3):
        set_gradients(params, seed)
        optimizer.step(0.1)
    layer = optimizer.layer("a", pad_outputs=True)
    assert layer.weight.shape == (8, 8)
    assert layer.bias.shape == (8,)
    assert not layer.weight[:, 3:].any()
    assert not layer.weight[5:].any()
    assert torch.equal(layer.weight[:5, :3], params["a.weight"])
    assert optimizer.layer("a", pad_outputs=False).weight.shape == (5, 8)


def test_the_copy_in_the_compute_type_follows() -> None:
    params = parameters()
    optimizer = DenseOptimizer(config("sgd"), params, compute_dtype=torch.bfloat16)
    set_gradients(params, 0)
    optimizer.step(0.1)
    rounded = optimizer.layer("a", pad_outputs=False).weight
    assert torch.equal(rounded, params["a.weight"].bfloat16())
    exact = optimizer.layer("a", pad_outputs=False, master=True).weight
    assert torch.equal(exact, params["a.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_continues_exactly(name: str) -> None:
    def run(optimizer: DenseOptimizer, params: dict[str, nn.Parameter], seeds: range) -> None:
        for seed in seeds:
            set_gradients(params, seed)
            optimizer.step(0.1)

    params = parameters()
    optimizer = DenseOptimizer(config(name), params)
    run(optimizer, params, range(2))
    saved = {key: tensor.clone() for key, tensor in optimizer.state_tensors().items()}
    resumed = {key: nn.Parameter(p.detach().clone()) for key, p in params.items()}
    run(optimizer, params, range(2, 4))
    # another padding: the state of a parameter does not depend on how it is stored
    continued = DenseOptimizer(config(name), resumed, width_multiple=8)
    restore(continued.state_tensors(), saved)
    run(continued, resumed, range(2, 4))
    assert all(torch.equal(params[key], resumed[key]) for key in params)


def test_state_is_named_by_parameter() -> None:
    state = DenseOptimizer(config("adam"), parameters(), width_multiple=8).state_tensors()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        "a.weight.first": (5, 3),
        "a.bias.first": (5,),
        "b.weight.first": (1, 5),
        "b.bias.first": (1,),
        "a.weight.second": (5, 3),
        "a.bias.second": (5,),
        "b.weight.second": (1, 5),
        "b.bias.second": (1,),
        "num_steps": (),
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_gpu_agrees_with_the_cpu(name: str) -> None:
    results = []
    for device in ("cpu", "cuda"):
        params = parameters(device)
        optimizer = DenseOptimizer(config(name), params, width_multiple=8)
        for seed in range(3):
            set_gradients(params, seed)
            optimizer.step(0.1)
        results.append([p.detach().cpu() for p in params.values()])
    torch.testing.assert_close(*results)
