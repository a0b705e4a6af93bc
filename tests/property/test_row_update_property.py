"""The kernel for the CPU against the definition: all rules, types, repeated rows, no ids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdlrm.kernels.row_gradient import (
    RowOrder,
    define_sort_rows,
    row_order,
    sort_rows,
)
from fastdlrm.kernels.row_update import UpdateRule, define_update_rows_, update_rows_
from fastdlrm.kernels.step_scalars import StepScalars

NUM_ROWS = 11
FEW = settings(max_examples=60, deadline=None)
RULES = ("sgd", "adagrad", "rowwise_adagrad", "adam")
STEP = StepScalars(0.1, 0.3, 0.2, 0.7, 12345.0)

# Sums of up to 12 products in another order, then a root and a quotient: a few units of the last
# place of numbers near 1.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def both_ways(
    rule: UpdateRule, weight: Tensor, grads: Tensor, order: RowOrder, step: StepScalars
) -> tuple[list[Tensor], list[Tensor]]:
    """Weight and state after two updates by the operator, and by its definition."""
    constants = torch.tensor([rule.eps, rule.l2, *rule.betas], dtype=torch.float64)
    scalars = step.tensor(torch.device("cpu"))
    fast, slow = weight.clone(), weight.clone()
    fast_state, slow_state = rule.zero_state(fast), rule.zero_state(slow)
    tables = [slow, *slow_state.values()]
    for _ in range(2):
        update_rows_(fast, fast_state, grads, order, rule, scalars)
        define_update_rows_(tables, grads, *order[:3], rule.name, constants, scalars)
    return [fast, *fast_state.values()], tables


@FEW
@given(
    bags=st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=4), min_size=1, max_size=6),
    name=st.sampled_from(RULES),
    dim=st.sampled_from([1, 3, 8, 16, 33]),
    l2=st.sampled_from([0.0, 0.01]),
    pooling=st.sampled_from(["sum", "mean"]),
    is_weighted=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_kernel_is_the_definition(
    bags: list[list[int]],
    name: str,
    dim: int,
    l2: float,
    pooling: str,
    is_weighted: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([row for bag in bags for row in bag], dtype=torch.int32)
    offsets = torch.tensor([0, *np.cumsum([len(bag) for bag in bags])])
    weights = torch.rand(len(rows), generator=generator) if is_weighted else None
    order = row_order(rows, offsets, weights, pooling)
    weight = torch.randn(NUM_ROWS, dim, generator=generator)
    grads = torch.randn(len(bags), dim, generator=generator)
    rule = UpdateRule(name, eps=1e-2, l2=l2)
    for found, expected in zip(*both_ways(rule, weight, grads, order, STEP), strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("name", RULES)
def test_bf16_rows_are_rounded_alike(name: str) -> None:
    """The same float32 numbers give the same bits; a number may differ by one unit of float32, and
    then, rarely, of bfloat16."""
    rows = torch.randint(0, 500, (2000,), dtype=torch.int32)
    weight, grads = torch.randn(500, 16).bfloat16(), torch.randn(2000, 16)
    rule = UpdateRule(name, eps=1e-2)
    found, expected = both_ways(rule, weight, grads, row_order(rows), STEP)
    share = (found[0] == expected[0]).float().mean()
    assert share > 0.999
    torch.testing.assert_close(found[0], expected[0], rtol=2**-7, atol=1e-6)
    again, _ = both_ways(rule, weight, grads, row_order(rows), STEP)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_sgd_of_bf16_rows_is_bit_for_bit() -> None:
    """One id a row and one product a number: nothing that could be summed in another order."""
    weight, grads = torch.randn(300, 24).bfloat16(), torch.randn(300, 24)
    order = row_order(torch.randperm(300).int())
    found, expected = both_ways(UpdateRule("sgd"), weight, grads, order, STEP)
    assert torch.equal(found[0], expected[0])


def test_bf16_gradients() -> None:
    """The definition rounds the sum of a row to bfloat16, the kernel does not."""
    weight, grads = torch.randn(50, 16), torch.randn(200, 16).bfloat16()
    order = row_order(torch.randint(0, 50, (200,), dtype=torch.int32))
    (found,), (expected,) = both_ways(UpdateRule("sgd"), weight, grads, order, STEP)
    (exact,), _ = both_ways(UpdateRule("sgd"), weight, grads.float(), order, STEP)
    torch.testing.assert_close(found, exact, **TOLERANCE)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_have_the_definition(dtype: torch.dtype) -> None:
    weight, grads = torch.randn(20, 4).to(dtype), torch.randn(30, 4).to(dtype)
    order = row_order(torch.randint(0, 20, (30,)))
    found, expected = both_ways(UpdateRule("adagrad"), weight, grads, order, STEP)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_threads_do_not_change_the_result(name: str) -> None:
    rows = torch.randint(0, 3000, (20_000,), dtype=torch.int32)
    rows[:5000] = 7  # one run longer than many pieces
    weight, grads = torch.randn(3000, 20), torch.randn(20_000, 20)
    results = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            order = row_order(rows)
            results.append(both_ways(UpdateRule(name), weight, grads, order, STEP)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@FEW
@given(
    rows=st.lists(st.integers(0, 2**31 - 1), max_size=40),
    few=st.integers(1, 2**31 - 1),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_rows_are_sorted_stably(rows: list[int], few: int, dtype: torch.dtype) -> None:
    folded = [row % few for row in rows]
    keys, places = sort_rows(torch.tensor(folded, dtype=dtype))
    assert keys.dtype == dtype
    assert keys.tolist() == sorted(folded)
    assert places.tolist() == sorted(range(len(folded)), key=folded.__getitem__)


@FEW
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    extents=st.lists(st.sampled_from([1, 5, 3000, 2**26]), min_size=5, max_size=5),
    has_values=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_segments_do_not_change_the_order(
    sizes: list[int], extents: list[int], has_values: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    starts = [0, *np.cumsum(extents)]
    parts = [
        torch.randint(int(start), int(start) + extent, (size,), generator=generator)
        for size, extent, start in zip(sizes, extents, starts, strict=False)
    ]
    rows, bounds = torch.cat(parts).int(), torch.tensor([0, *np.cumsum(sizes)])
    values = torch.randint(0, 99, (len(rows),), generator=generator) if has_values else None
    found = sort_rows(rows, values, bounds)
    for one, other in zip(found, define_sort_rows(rows, values, None), strict=True):
        assert one.tolist() == other.tolist()


def test_many_rows_are_sorted_by_threads_together() -> None:
    parts = [torch.randint(k * 2**23, (k + 1) * 2**23, (9000,)) for k in range(5)]
    rows = torch.cat(parts).int()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        keys, places = sort_rows(rows, None, torch.arange(6) * 9000)
    finally:
        torch.set_num_threads(before)
    expected = torch.sort(rows, stable=True)
    assert torch.equal(keys, expected.values)
    assert torch.equal(places.long(), expected.indices)
