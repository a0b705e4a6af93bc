"""The tables' optimizer: chunks by hand, updates against the rules in float64 by the oracle."""

import pytest
import torch
from torch import Tensor

from fastdlrm.kernels import row_update as definition
from fastdlrm.kernels.cuda import row_update as kernels
from fastdlrm.kernels.row_gradient import RowGradient, row_order
from fastdlrm.kernels.row_update import UpdateRule
from fastdlrm.kernels.step_scalars import StepScalars
from tests import oracles
from tests.kernel_device import DEVICE, HALVES, MARKS, assert_near, draw, on_device

pytestmark = MARKS

NAMES = ["sgd", "adagrad", "rowwise_adagrad", "adam"]
NOW = StepScalars(0.125, 0.1, 0.001, gradient_scale=0.5, rounding_seed=7.0)
RUNS = {
    # how often each row is read
    "one id": [1],
    "all different": [1] * 21,
    "whole chunks": [4, 8, 4, 16],
    "one more, one less": [5, 3, 9, 7, 1, 17],
    "one long run": [101],
    "two long runs in a window": [6, 6, 6, 1, 6, 6],
    "skew": [1, 90, 2, 1, 1, 33, 1],
}


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of 4 ids, their sums added by twos: long runs without many ids."""
    monkeypatch.setattr(kernels, "CHUNK", 4)
    monkeypatch.setattr(kernels, "PARTS", 2)


def ids_of(runs: list[int]) -> list[int]:
    """Every second row is read, in a mixed order."""
    ids = [2 * row for row, count in enumerate(runs) for _ in range(count)]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(3))
    return [ids[i] for i in order.tolist()]


def start(rule: UpdateRule, num_rows: int, dim: int, dtype: torch.dtype = torch.float32):
    """A table, and the rule's state as after some steps."""
    generator = torch.Generator().manual_seed(0)
    weight = draw(generator, num_rows, dim).to(dtype)
    state = {
        name: torch.rand(zeros.shape, generator=generator).to(DEVICE)
        for name, zeros in rule.zero_state(weight).items()
    }
    return weight, state


def update_by_kernel(
    weight: Tensor, state: dict[str, Tensor], grad: Tensor, rule: UpdateRule, now: StepScalars,
    *lookup,
) -> None:  # fmt: skip
    """`lookup`: rows, and offsets, weights and pooling where they are not single ids."""
    order = row_order(*lookup)
    chunks = kernels.row_chunks(order.rows)
    kernels.update_rows_(
        weight, list(state.values()), grad, order.rows, order.bags, order.factors, chunks,
        on_device(now), **rule._asdict(),
    )  # fmt: skip


def update_by_oracle(
    weight: Tensor, state: dict[str, Tensor], grad: Tensor, rule: UpdateRule, now: StepScalars,
    bags: list[list[int]], weights: list[list[float]] | None = None, pooling: str = "sum",
) -> None:  # fmt: skip
    by_row = oracles.row_gradient(grad.double().cpu().numpy(), bags, weights, pooling)
    rows = sorted(by_row)
    values = torch.stack([torch.from_numpy(by_row[row]) for row in rows])
    if weight.dtype != torch.float64:
        values = values.float()
    gradient = RowGradient(torch.tensor(rows), values)
    scalars = torch.tensor(now, dtype=torch.float64)
    definition.apply_rule_(weight, state, gradient, rule, scalars)


def copies(weight: Tensor, state: dict[str, Tensor], dtype: torch.dtype | None = None):
    """On the CPU, for a definition to update."""
    return weight.to("cpu", dtype, copy=True), {
        name: x.to("cpu", dtype, copy=True) for name, x in state.items()
    }


def assert_single_ids_agree(
    ids: list[int], dim: int, rule: UpdateRule, dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    weight, state = start(rule, max(ids) + 2, dim, dtype)
    exact_weight, exact_state = copies(weight, state, torch.float64)
    untouched = sorted(set(range(len(weight))) - set(ids))
    before = weight[untouched].clone()
    grad = draw(torch.Generator().manual_seed(1), len(ids), dim, dtype=grad_dtype)
    rows = torch.tensor(ids, dtype=torch.int32, device=DEVICE)
    update_by_kernel(weight, state, grad, rule, NOW, rows)
    update_by_oracle(exact_weight, exact_state, grad, rule, NOW, [[row] for row in ids])
    assert torch.equal(weight[untouched], before)
    assert_near(weight, exact_weight)
    for name, x in state.items():
        assert_near(x, exact_state[name])


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("dim", [1, 3, 20, 128])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("short_chunks")
def test_is_the_definition(name: str, dim: int, runs: str) -> None:
    rule = UpdateRule(name, eps=1e-2, l2=0.1)
    assert_single_ids_agree(ids_of(RUNS[runs]), dim, rule, torch.float32, torch.float32)


@pytest.mark.parametrize("runs", [RUNS["skew"], [300, 64, 65, 63, 1, 700, *[1] * 400]])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_as_long_as_they_are(name: str, runs: list[int]) -> None:
    rule = UpdateRule(name, eps=1e-2)
    assert_single_ids_agree(ids_of(runs), 3, rule, torch.float32, torch.float32)


@pytest.mark.parametrize("grad_dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("short_chunks")
def test_fp16_rounds_to_the_nearest(name: str, grad_dtype: torch.dtype) -> None:
    rule = UpdateRule(name, eps=1e-2, l2=0.1)
    assert_single_ids_agree(ids_of(RUNS["skew"]), 20, rule, torch.float16, grad_dtype)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.usefixtures("short_chunks")
def test_bags(is_weighted: bool, pooling: str, index_dtype: torch.dtype) -> None:
    bags = [[], [1, 5, 1], [5], [], [1] * 30, [0, 7, 5, 5, 5, 5, 5], []]
    flat = [row for bag in bags for row in bag]
    generator = torch.Generator().manual_seed(2)
    grad, weights = draw(generator, len(bags), 20), draw(generator, len(flat))
    rule = UpdateRule("rowwise_adagrad", eps=1e-2)
    weight, state = start(rule, 9, 20)
    exact_weight, exact_state = copies(weight, state, torch.float64)
    rows = torch.tensor(flat, dtype=index_dtype, device=DEVICE)
    offsets = torch.tensor([0, *map(len, bags)], device=DEVICE).cumsum(0)
    lookup = (rows, offsets, weights if is_weighted else None, pooling)
    update_by_kernel(weight, state, grad, rule, NOW, *lookup)
    pieces = weights.double().cpu().split([len(bag) for bag in bags])
    bag_weights = [piece.tolist() for piece in pieces] if is_weighted else None
    update_by_oracle(exact_weight, exact_state, grad, rule, NOW, bags, bag_weights, pooling)
    assert_near(weight, exact_weight)
    assert_near(state["square_sum"], exact_state["square_sum"])


@pytest.mark.parametrize("seed", [0.0, 1.0, 2.0**24 - 1])
@pytest.mark.usefixtures("short_chunks")
def test_bf16_is_rounded_by_the_very_bits_of_the_definition(seed: float) -> None:
    """Gradients of few bits, and a power of two as rate: no sum or product is rounded before."""
    ids, rule = ids_of(RUNS["skew"]), UpdateRule("sgd")
    now = StepScalars(2.0**-5, rounding_seed=seed)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randint(-8, 9, (len(ids), 20), generator=generator).to(DEVICE) / 64
    weight, state = start(rule, max(ids) + 1, 20, torch.bfloat16)
    expected, _ = copies(weight, state)
    update_by_kernel(weight, state, grad, rule, now, torch.tensor(ids, device=DEVICE))
    update_by_oracle(expected, {}, grad, rule, now, [[row] for row in ids])
    assert torch.equal(weight.cpu(), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("short_chunks")
def test_bf16_is_off_by_a_step_at_most_and_seldom(name: str) -> None:
    """A last bit of the sum or the rule moves a rounding only where its chance is near the edge."""
    ids, rule = ids_of([7] * 60), UpdateRule(name, eps=1e-2, l2=0.1)
    weight, state = start(rule, max(ids) + 1, 20, torch.bfloat16)
    expected, expected_state = copies(weight, state)
    grad = draw(torch.Generator().manual_seed(1), len(ids), 20)
    update_by_kernel(weight, state, grad, rule, NOW, torch.tensor(ids, device=DEVICE))
    update_by_oracle(expected, expected_state, grad, rule, NOW, [[row] for row in ids])
    steps = (weight.cpu().view(torch.int16).int() - expected.view(torch.int16).int()).abs()
    assert steps.max() <= 1
    assert steps.float().mean() < 0.01


def test_chunks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 3)
    # row 1: ids 0 .. 6, cut at 0, 3, 6; row 4: id 7; row 9: ids 8 .. 10
    rows = torch.tensor([1] * 7 + [4] + [9] * 3, device=DEVICE)
    begins, ranks, tags = kernels.row_chunks(rows)
    count = int(ranks[-1])
    assert begins[: count + 1].tolist() == [0, 3, 6, 7, 8, 11]
    # 11 ids touch the windows 0 .. 3, of two slots each
    assert tags.tolist() == [-1] * 8


def test_no_ids_move_nothing() -> None:
    rule = UpdateRule("adagrad")
    weight, state = start(rule, 5, 3)
    before = weight.clone()
    none = torch.empty(0, dtype=torch.int32, device=DEVICE)
    grad = torch.empty(0, 3, device=DEVICE)
    update_by_kernel(weight, state, grad, rule, NOW, none)
    assert torch.equal(weight, before)
