"""The kernel that reads rows in few bits against the slow oracle."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdlrm.kernels.cuda.quantized_lookup import quantized_lookup
from fastdlrm.kernels.quantized_lookup import dequantize_rows, quantize_rows
from tests import oracles
from tests.kernel_device import DEVICE, FLOATS, MARKS, assert_near, draw

pytestmark = MARKS

NUM_ROWS = 9
LAYOUTS = {
    "empty bags": [[], [1, 2], [], [], [8], []],
    "repeated ids": [[4, 4, 4], [4], [0, 4, 0, 4]],
    "skew": [[7], [row % NUM_ROWS for row in range(103)], [0, 1]],
    "many bags": [[row % NUM_ROWS] * (row % 4) for row in range(70)],
}


def jagged(bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = [row for bag in bags for row in bag]
    lengths = torch.tensor([0, *map(len, bags)], device=DEVICE)
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE), lengths.cumsum(0)


def stacked(dim: int, dtype: str) -> tuple[Tensor, np.ndarray]:
    """Rows in few bits, and the numbers they stand for."""
    rows = torch.randn(NUM_ROWS, dim, generator=torch.Generator().manual_seed(0))
    stack = quantize_rows(rows, dtype)
    return stack.to(DEVICE), dequantize_rows(stack, dtype).double().numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [2, 6, 16, 20, 128])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_bags(dtype: str, layout: str, dim: int, pooling: str, is_weighted: bool) -> None:
    bags = LAYOUTS[layout]
    rows, offsets = jagged(bags)
    stack, numbers = stacked(dim, dtype)
    weights, bag_weights = None, None
    if is_weighted:
        weights = draw(torch.Generator().manual_seed(1), len(rows))
        pieces = weights.double().cpu().split([len(bag) for bag in bags])
        bag_weights = [piece.tolist() for piece in pieces]
    exact = oracles.pooled_lookup(numbers, bags, bag_weights, pooling)
    found = quantized_lookup(
        stack, rows, offsets, weights, pooling == "mean", torch.float32, dtype == "int4"
    )
    assert_near(found, torch.from_numpy(exact))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_types(dtype: str, out_dtype: torch.dtype, index_dtype: torch.dtype) -> None:
    bags = LAYOUTS["skew"]
    rows, offsets = (x.to(index_dtype) for x in jagged(bags))
    stack, numbers = stacked(20, dtype)
    exact = oracles.pooled_lookup(numbers, bags, None, "mean")
    found = quantized_lookup(stack, rows, offsets, None, True, out_dtype, dtype == "int4")
    assert found.dtype == out_dtype
    assert_near(found, torch.from_numpy(exact))


@pytest.mark.parametrize("dim", [2, 6, 20, 128])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_single_ids_are_dequantised_rows_to_the_bit(dtype: str, dim: int) -> None:
    stack, _ = stacked(dim, dtype)
    rows = torch.tensor([5, 5, 0, 8, *range(NUM_ROWS)], device=DEVICE)
    found = quantized_lookup(stack, rows, None, None, False, torch.float32, dtype == "int4")
    assert torch.equal(found, dequantize_rows(stack, dtype)[rows])


def test_int8_of_an_odd_dim() -> None:
    stack, numbers = stacked(5, "int8")
    rows = torch.arange(NUM_ROWS, device=DEVICE)
    found = quantized_lookup(stack, rows, None, None, False, torch.float32, False)
    np.testing.assert_array_equal(found.double().cpu().numpy(), numbers)


def test_no_bags() -> None:
    stack, _ = stacked(6, "int8")
    none = torch.empty(0, dtype=torch.int32, device=DEVICE)
    for offsets in (None, torch.zeros(1, dtype=torch.int64, device=DEVICE)):
        found = quantized_lookup(stack, none, offsets, None, False, torch.float32, False)
        assert found.shape == (0, 6)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
def test_it_is_what_a_gpu_runs() -> None:
    stack, numbers = stacked(16, "int8")
    found = torch.ops.fastdlrm.quantized_lookup(
        stack, torch.tensor([3], device=DEVICE), None, None, False, torch.float32, False
    )
    np.testing.assert_array_equal(found.double().cpu().numpy(), numbers[3:4])
