"""The lookup against the oracle, against nn.EmbeddingBag's gradient, and numerically."""

import numpy as np
import pytest
import torch
from torch import nn

from fastdlrm.kernels.lookup import pooled_lookup
from tests import oracles

TABLE = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
BAGS = [[0, 1], [], [2, 2, 1], [0]]
ROWS = torch.tensor([0, 1, 2, 2, 1, 0], dtype=torch.int32)
OFFSETS = torch.tensor([0, 2, 2, 5, 6])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, -1.0, 0.0, 3.0])
BAG_WEIGHTS = [[1.0, 0.5], [], [2.0, -1.0, 0.0], [3.0]]


def test_sum_by_hand() -> None:
    # bag 0: (1 + 10, 2 + 20); bag 1 is empty; bag 2: 100 + 100 + 10; bag 3: row 0
    expected = torch.tensor([[11.0, 22.0], [0.0, 0.0], [210.0, 420.0], [1.0, 2.0]])
    assert torch.equal(pooled_lookup(TABLE, ROWS, OFFSETS), expected)


def test_weighted_mean_divides_by_the_number_of_ids() -> None:
    # bag 0: (1 * 1 + 0.5 * 10) / 2 = 3; bag 2: (2 * 100 - 100 + 0 * 10) / 3; bag 3: 3 * 1 / 1
    expected = torch.tensor([[3.0, 6.0], [0.0, 0.0], [100 / 3, 200 / 3], [3.0, 6.0]])
    found = pooled_lookup(TABLE, ROWS, OFFSETS, WEIGHTS, "mean")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bags_match_the_oracle(pooling: str, is_weighted: bool, dtype: torch.dtype) -> None:
    found = pooled_lookup(
        TABLE, ROWS.to(dtype), OFFSETS.to(dtype), WEIGHTS if is_weighted else None, pooling
    )
    expected = oracles.pooled_lookup(
        TABLE.double().numpy(), BAGS, BAG_WEIGHTS if is_weighted else None, pooling
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_single_ids_are_rows_times_weights() -> None:
    rows, weights = torch.tensor([2, 0]), torch.tensor([0.5, 2.0])
    assert pooled_lookup(TABLE, rows).tolist() == [[100.0, 200.0], [1.0, 2.0]]
    assert pooled_lookup(TABLE, rows, None, weights).tolist() == [[50.0, 100.0], [2.0, 4.0]]


def test_no_ids() -> None:
    empty = torch.empty(0, dtype=torch.int32)
    assert pooled_lookup(TABLE, empty).shape == (0, 2)
    assert pooled_lookup(TABLE, empty, torch.tensor([0, 0, 0])).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_gradient_is_that_of_embedding_bag(pooling: str) -> None:
    bag = nn.EmbeddingBag(3, 2, mode=pooling, include_last_offset=True)
    weight = bag.weight.detach().clone().requires_grad_()
    upstream = torch.arange(8.0).view(4, 2)
    (bag(ROWS.long(), OFFSETS) * upstream).sum().backward()
    (pooled_lookup(weight, ROWS, OFFSETS, None, pooling) * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, bag.weight.grad)


@pytest.mark.parametrize("offsets", [OFFSETS, None])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_gradcheck(offsets: torch.Tensor | None, pooling: str) -> None:
    weight = TABLE.double().requires_grad_()
    weights = WEIGHTS.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w, s: pooled_lookup(w, ROWS.long(), offsets, s, pooling), (weight, weights)
    )
    assert torch.autograd.gradcheck(
        lambda w: pooled_lookup(w, ROWS.long(), offsets, None, pooling), (weight,)
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("offsets", [None, OFFSETS, OFFSETS.int()])
@pytest.mark.parametrize("is_mean", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_knows_the_operator(
    dtype: torch.dtype,
    is_mean: bool,
    offsets: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> None:
    """Schema, autograd, and shapes without computing, for `torch.compile` and `torch.export`."""
    weight = TABLE.clone().requires_grad_()
    if weights is not None:
        weights = weights.clone().requires_grad_()
    arguments = (weight, ROWS, offsets, weights, is_mean, dtype)
    torch.library.opcheck(torch.ops.fastdlrm.pooled_lookup, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_knows_the_operator_on_tables_of_16_bits(dtype: torch.dtype) -> None:
    arguments = (TABLE.to(dtype), ROWS, OFFSETS, None, True, torch.float32)
    torch.library.opcheck(torch.ops.fastdlrm.pooled_lookup, arguments)
