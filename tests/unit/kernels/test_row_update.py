"""Row updates against torch.optim and hand-worked numbers; other rows and states never move."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdlrm.kernels.row_gradient import RowGradient
from fastdlrm.kernels.row_update import (
    adagrad_update_,
    adam_update_,
    rowwise_adagrad_update_,
    sgd_update_,
)
from fastdlrm.kernels.step_scalars import StepScalars

ALL_ROWS = torch.arange(6)
BETAS = (0.9, 0.999)


def gradients(steps: int, rows: Tensor) -> list[RowGradient]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(steps, len(rows), 3, generator=generator)
    return [RowGradient(rows, v) for v in values]


def trained_by_torch(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    start: Tensor,
    grads: list[RowGradient],
    is_sparse: bool = False,
) -> Tensor:
    weight = start.clone().requires_grad_()
    optimizer = make([weight])
    for rows, values in grads:
        grad = torch.sparse_coo_tensor(
            rows.unsqueeze(0), values, weight.shape, check_invariants=True
        )
        weight.grad = grad if is_sparse else grad.to_dense()
        optimizer.step()
    return weight.detach()


def test_sgd_is_torch_sgd() -> None:
    start, grads = torch.randn(6, 3), gradients(3, torch.tensor([0, 4]))
    weight = start.clone()
    for gradient in grads:
        sgd_update_(weight, gradient, StepScalars(0.1))
    expected = trained_by_torch(lambda p: torch.optim.SGD(p, lr=0.1), start, grads)
    torch.testing.assert_close(weight, expected)


def test_adagrad_is_torch_adagrad() -> None:
    start, grads = torch.randn(6, 3), gradients(3, torch.tensor([1, 2, 5]))
    weight, square_sum = start.clone(), torch.zeros(6, 3)
    for gradient in grads:
        adagrad_update_(weight, square_sum, gradient, StepScalars(0.1), eps=1e-8)
    expected = trained_by_torch(lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-8), start, grads)
    torch.testing.assert_close(weight, expected)


def test_rowwise_adagrad_by_hand() -> None:
    weight, square_sum = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([0.0, 9.0])
    rows = torch.tensor([1])
    # s = 9 + (3^2 + 4^2 + ...) / D = 9 + (3.0^2 + 5.0^2) / 2 = 9 + 17 = 26
    gradient = RowGradient(rows, torch.tensor([[3.0, 5.0]]))
    rowwise_adagrad_update_(weight, square_sum, gradient, StepScalars(0.5), eps=0.25)
    assert square_sum.tolist() == [0.0, 26.0]
    denominator = math.sqrt(26) + 0.25  # eps outside the root
    expected = [[1.0, 1.0], [2 - 0.5 * 3 / denominator, 2 - 0.5 * 5 / denominator]]
    torch.testing.assert_close(weight, torch.tensor(expected))


def test_adam_is_torch_adam_where_every_row_is_in_every_batch() -> None:
    start, grads = torch.randn(6, 3), gradients(4, ALL_ROWS)
    weight, first, second = start.clone(), torch.zeros(6, 3), torch.zeros(6, 3)
    for step, gradient in enumerate(grads, 1):
        now = StepScalars.of_step(0.1, step, BETAS)
        adam_update_(weight, first, second, gradient, now, eps=1e-3)
    expected = trained_by_torch(lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-3), start, grads)
    torch.testing.assert_close(weight, expected)


def test_adam_is_torch_sparse_adam_where_rows_come_and_go() -> None:
    # eps is next to nothing: torch adds it before the bias correction of v, Adam's paper after it.
    start = torch.randn(6, 3)
    grads = [
        RowGradient(torch.tensor(rows), torch.randn(len(rows), 3))
        for rows in ([0, 1], [1, 5], [3], [0, 1, 5])
    ]
    weight, first, second = start.clone(), torch.zeros(6, 3), torch.zeros(6, 3)
    for step, gradient in enumerate(grads, 1):
        now = StepScalars.of_step(0.1, step, BETAS)
        adam_update_(weight, first, second, gradient, now, eps=1e-20)
    expected = trained_by_torch(
        lambda p: torch.optim.SparseAdam(p, lr=0.1, eps=1e-20), start, grads, is_sparse=True
    )
    torch.testing.assert_close(weight, expected)


def update(name: str, weight: Tensor, state: list[Tensor], gradient: RowGradient) -> None:
    if name == "sgd":
        sgd_update_(weight, gradient, StepScalars(0.1))
    elif name == "adagrad":
        adagrad_update_(weight, state[0], gradient, StepScalars(0.1), eps=1e-8)
    elif name == "rowwise_adagrad":
        rowwise_adagrad_update_(weight, state[0], gradient, StepScalars(0.1), eps=1e-8)
    else:
        adam_update_(weight, *state, gradient, StepScalars.of_step(0.1, 3, BETAS), eps=1e-8)


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "sgd": [],
    "adagrad": [(6, 3)],
    "rowwise_adagrad": [(6,)],
    "adam": [(6, 3), (6, 3)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_only_the_rows_of_the_gradient_move(name: str) -> None:
    weight, state = torch.randn(6, 3), [torch.rand(shape) + 1 for shape in SHAPES[name]]
    before = [x.clone() for x in (weight, *state)]
    update(name, weight, state, RowGradient(torch.tensor([2, 3]), torch.ones(2, 3)))
    for old, new in zip(before, (weight, *state), strict=True):
        moved = (old != new).reshape(6, -1)
        assert moved[2:4].all()
        assert not moved[[0, 1, 4, 5]].any()


@pytest.mark.parametrize("name", SHAPES)
def test_empty_gradient_moves_nothing(name: str) -> None:
    weight, state = torch.randn(6, 3), [torch.rand(shape) for shape in SHAPES[name]]
    before = [x.clone() for x in (weight, *state)]
    update(name, weight, state, RowGradient(torch.empty(0, dtype=torch.int64), torch.empty(0, 3)))
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, *state), strict=True))
