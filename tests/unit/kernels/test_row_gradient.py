"""Row gradients against the dense gradient of nn.EmbeddingBag, the oracle and a hand-worked bag."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdlrm.kernels.lookup import Pooling
from fastdlrm.kernels.row_gradient import RowGradient, row_gradient, row_order
from tests import oracles

BAGS = [[4, 1], [], [1, 1, 0], [4]]
ROWS = torch.tensor([4, 1, 1, 1, 0, 4], dtype=torch.int32)
OFFSETS = torch.tensor([0, 2, 2, 5, 6])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, -1.0, 0.25, 3.0])
BAG_WEIGHTS = [[1.0, 0.5], [], [2.0, -1.0, 0.25], [3.0]]
GRAD = torch.tensor([[1.0, 2.0], [5.0, 5.0], [10.0, 20.0], [100.0, 200.0]])


def gradient(
    grad: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: Pooling = "sum",
) -> RowGradient:
    return row_gradient(grad, row_order(rows, offsets, weights, pooling))


def test_sum_by_hand() -> None:
    # row 0: bag 2; row 1: bag 0 + twice bag 2 = 1 + 20; row 4: bag 0 + bag 3 = 101
    rows, values = gradient(GRAD, ROWS, OFFSETS)
    assert rows.tolist() == [0, 1, 4]
    assert values.tolist() == [[10, 20], [21, 42], [101, 202]]


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bags_match_the_oracle(pooling: str, is_weighted: bool, dtype: torch.dtype) -> None:
    weights = WEIGHTS if is_weighted else None
    rows, values = gradient(GRAD, ROWS.to(dtype), OFFSETS, weights, pooling)
    expected = oracles.row_gradient(
        GRAD.double().numpy(), BAGS, BAG_WEIGHTS if is_weighted else None, pooling
    )
    assert rows.dtype == torch.int64
    assert rows.tolist() == sorted(expected)
    np.testing.assert_allclose(values, [expected[row] for row in sorted(expected)], rtol=1e-6)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_single_ids_are_the_dense_gradient_of_embedding_bag(is_weighted: bool) -> None:
    torch.manual_seed(0)
    num_ids = 500
    ids = torch.randint(0, 40, (num_ids,)) * 2  # odd rows are never read
    weights = torch.randn(num_ids) if is_weighted else None
    grad = torch.randn(num_ids, 8)
    bag = nn.EmbeddingBag(80, 8, mode="sum")
    bag(ids, torch.arange(num_ids), weights).backward(grad)
    rows, values = gradient(grad, ids.int(), None, weights)
    assert bag.weight.grad is not None
    assert rows.tolist() == sorted(set(ids.tolist()))
    torch.testing.assert_close(values, bag.weight.grad[rows], rtol=1e-5, atol=1e-5)


def test_no_ids() -> None:
    empty = torch.empty(0, dtype=torch.int32)
    for offsets in (None, torch.tensor([0, 0, 0])):
        rows, values = gradient(torch.ones(0 if offsets is None else 2, 3), empty, offsets)
        assert rows.shape == (0,)
        assert values.shape == (0, 3)


def test_same_bits_at_every_run() -> None:
    rows, grad = torch.randint(0, 7, (5000,), dtype=torch.int32), torch.randn(5000, 4)
    first = gradient(grad, rows)
    assert all(torch.equal(first.values, gradient(grad, rows).values) for _ in range(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offsets", [OFFSETS, None])
def test_gpu_agrees_and_repeats(offsets: Tensor | None) -> None:
    torch.manual_seed(0)
    rows = torch.randint(0, 50, (6000,), dtype=torch.int32)
    offsets = None if offsets is None else torch.arange(0, 6001, 3)
    weights, grad = torch.randn(6000), torch.randn(6000 if offsets is None else 2000, 16)
    expected = gradient(grad, rows, offsets, weights)
    moved = [None if x is None else x.cuda() for x in (grad, rows, offsets, weights)]
    found, again = gradient(*moved), gradient(*moved)
    assert torch.equal(found.values, again.values)
    assert torch.equal(found.rows.cpu(), expected.rows)
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=1e-4, atol=1e-4)
