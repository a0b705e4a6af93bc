"""Rows in few bits: bytes by hand, and the lookup against sums in numpy, to the bit if exact."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdlrm.kernels import quantized_lookup as definition
from fastdlrm.kernels.cpu import quantized_lookup as kernel
from fastdlrm.kernels.lookup import Pooling
from fastdlrm.kernels.quantized_lookup import (
    QuantizedDtype,
    dequantize_rows,
    quantize_rows,
    quantized_lookup,
    quantized_row_bytes,
)
from tests import oracles

DTYPES = ["int8", "int4"]
DIMS = [2, 6, 8, 16, 20, 32, 48, 64, 128, 256]
NUM_ROWS = 40
BAGS = [[0, 1], [], [39, 2, 2, 1], [0], [*range(30)], [5] * 7]


def draw(dim: int, dtype: QuantizedDtype) -> Tensor:
    rows = torch.randn(NUM_ROWS, dim, generator=torch.Generator().manual_seed(dim))
    return quantize_rows(rows, dtype)


def jagged(bags: list[list[int]], dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([0, *map(len, bags)])
    return torch.tensor([i for bag in bags for i in bag], dtype=dtype), lengths.cumsum(0)


def cut(weights: Tensor, bags: list[list[int]]) -> list[list[float]]:
    return [piece.tolist() for piece in weights.double().split([len(bag) for bag in bags])]


def test_bytes_of_int8_by_hand() -> None:
    # the largest is 127 steps of 0.5, a bfloat16: 0.5 is 0x3f00, the low byte first
    rows = torch.tensor([[63.5, -63.5, 0.0, 0.74, 0.76]])
    found = quantize_rows(rows, "int8")
    assert found.tolist() == [[127, 256 - 127, 0, 1, 2, 0x00, 0x3F]]
    assert dequantize_rows(found, "int8").tolist() == [[63.5, -63.5, 0.0, 0.5, 1.0]]


def test_bytes_of_int4_by_hand() -> None:
    # from -1 to 2.75 in 15 steps of 0.25 (0x3e80), offset -1 (0xbf80); codes 0, 15, 4 and 5
    rows = torch.tensor([[-1.0, 2.75, 0.0, 0.3]])
    found = quantize_rows(rows, "int4")
    assert found.tolist() == [[0 + 16 * 15, 4 + 16 * 5, 0x80, 0x3E, 0x80, 0xBF]]
    assert dequantize_rows(found, "int4").tolist() == [[-1.0, 2.75, 0.0, 0.25]]


def test_scales_are_rounded_up() -> None:
    # 1 + 2^-20 in 127 steps: the nearest bfloat16 is 1, and 127 codes of it do not reach the number
    found = quantize_rows(torch.tensor([[127 * (1 + 2**-20), 0.0]]), "int8")
    scale = found[0, 2:].clone().view(torch.bfloat16)
    assert scale.item() == 1 + 2**-7  # of the bfloat16 numbers the next above 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros(dtype: QuantizedDtype) -> None:
    rows = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    found = quantize_rows(rows, dtype)
    assert dequantize_rows(found, dtype)[0].tolist() == [0.0, 0.0]
    pooled = quantized_lookup(found, torch.tensor([0, 0]), torch.tensor([0, 2]), row_dtype=dtype)
    assert pooled.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("dtype", "expected"), [("int8", 18), ("int4", 12)])
def test_row_bytes_by_hand(dtype: QuantizedDtype, expected: int) -> None:
    assert quantized_row_bytes(dtype, 16) == expected  # 16 + 2; 8 + 4
    assert quantize_rows(torch.ones(3, 16), dtype).shape == (3, expected)


def test_int4_of_an_odd_dim_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int4 rows of 5 numbers: an even .* use int8"):
        quantize_rows(torch.ones(1, 5), "int4")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e38])
def test_what_no_row_can_hold_is_refused(dtype: QuantizedDtype, number: float) -> None:
    rows = torch.ones(4, 2)
    rows[2, 1] = number
    with pytest.raises(ValueError, match=rf"row 2 holds NaN, infinity .* which {dtype}"):
        quantize_rows(rows, dtype)


@pytest.mark.parametrize("dim", [*DIMS, 1, 5, 33])
def test_sums_of_int8_are_those_of_numpy_to_the_bit(dim: int) -> None:
    """A code times its scale is exact, so a sum in order has one result."""
    stack = draw(dim, "int8")
    rows, offsets = jagged(BAGS)
    numbers = dequantize_rows(stack, "int8").numpy()
    expected = np.zeros((len(BAGS), dim), np.float32)
    for bag, ids in enumerate(BAGS):
        for row in ids:
            expected[bag] += numbers[row]
    found = quantized_lookup(stack, rows, offsets, row_dtype="int8").numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_single_ids_are_dequantised_rows_to_the_bit(dtype: QuantizedDtype, dim: int) -> None:
    stack = draw(dim, dtype)
    rows = torch.arange(NUM_ROWS).flip(0)
    found = quantized_lookup(stack, rows, row_dtype=dtype)
    assert torch.equal(found, dequantize_rows(stack, dtype).flip(0))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dim", [6, 16, 64, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bags_match_the_oracle(
    dtype: QuantizedDtype, dim: int, is_weighted: bool, pooling: Pooling, index_dtype: torch.dtype
) -> None:
    stack = draw(dim, dtype)
    rows, offsets = jagged(BAGS, index_dtype)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(rows), generator=generator) if is_weighted else None
    found = quantized_lookup(stack, rows, offsets, weights, pooling, row_dtype=dtype)
    expected = oracles.pooled_lookup(
        dequantize_rows(stack, dtype).double().numpy(),
        BAGS,
        None if weights is None else cut(weights, BAGS),
        pooling,
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_ids_with_weights(dtype: QuantizedDtype) -> None:
    stack, weights = draw(16, dtype), torch.tensor([0.5, 0.0, -2.0])
    found = quantized_lookup(stack, torch.tensor([3, 4, 5]), None, weights, row_dtype=dtype)
    expected = dequantize_rows(stack, dtype)[3:6] * weights[:, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dim", [6, 16, 20, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bfloat16_is_the_float32_result_rounded(dtype: QuantizedDtype, dim: int) -> None:
    stack = draw(dim, dtype)
    rows, offsets = jagged(BAGS)
    for where, pooling in ((offsets, "sum"), (offsets, "mean"), (None, "sum")):
        wide = quantized_lookup(stack, rows, where, None, pooling, row_dtype=dtype)
        narrow = quantized_lookup(
            stack, rows, where, None, pooling, dtype=torch.bfloat16, row_dtype=dtype
        )
        assert torch.equal(narrow, wide.bfloat16())


@pytest.mark.parametrize("dim", [16, 6])
def test_bfloat16_keeps_nan_and_infinity(dim: int) -> None:
    stack = quantize_rows(torch.full((1, dim), 4e37), "int8")
    for weight, expected in ((1e3, torch.inf), (-1e3, -torch.inf), (torch.nan, torch.nan)):
        one = torch.tensor([weight])
        found = quantized_lookup(
            stack, torch.tensor([0]), None, one, dtype=torch.bfloat16, row_dtype="int8"
        )
        same = torch.full((1, dim), expected, dtype=torch.bfloat16)
        torch.testing.assert_close(found, same, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_left_to_the_definition(dtype: torch.dtype) -> None:
    stack = draw(16, "int8")
    found = quantized_lookup(stack, torch.tensor([7]), dtype=dtype, row_dtype="int8")
    assert torch.equal(found, dequantize_rows(stack, "int8")[7:8].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stack_that_is_a_view_is_read_right(dtype: QuantizedDtype) -> None:
    stack = draw(16, dtype)
    wide = torch.cat([stack, stack.flip(1)], 1)
    found = quantized_lookup(wide[:, : stack.shape[1]], torch.tensor([7, 1]), row_dtype=dtype)
    assert torch.equal(found, dequantize_rows(stack, dtype)[[7, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_a_bag_has_the_same_bits_alone(dtype: QuantizedDtype, pooling: Pooling) -> None:
    stack = draw(20, dtype)
    rows, offsets = jagged(BAGS)
    weights = torch.randn(len(rows), generator=torch.Generator().manual_seed(1))
    found = quantized_lookup(stack, rows, offsets, weights, pooling, row_dtype=dtype)
    for bag, (start, end) in enumerate(pairwise(offsets)):
        ids, scales, edges = rows[start:end], weights[start:end], torch.tensor([0, end - start])
        alone = quantized_lookup(stack, ids, edges, scales, pooling, row_dtype=dtype)
        assert torch.equal(alone[0], found[bag])


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SMALL_IDS", 0)
    stack = draw(16, "int8")
    rows, offsets = jagged(BAGS * 50)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(quantized_lookup(stack, rows, offsets, row_dtype="int8"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_ids(dtype: QuantizedDtype) -> None:
    stack, empty = draw(16, dtype), torch.empty(0, dtype=torch.int32)
    assert quantized_lookup(stack, empty, row_dtype=dtype).shape == (0, 16)
    edges = torch.tensor([0, 0, 0])
    assert not quantized_lookup(stack, empty, edges, pooling="mean", row_dtype=dtype).any()


@pytest.mark.parametrize("weights", [None, torch.ones(3)])
@pytest.mark.parametrize("offsets", [None, torch.tensor([0, 2, 3])])
@pytest.mark.parametrize("is_int4", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_knows_the_operator(
    dtype: torch.dtype, is_int4: bool, offsets: Tensor | None, weights: Tensor | None
) -> None:
    """Schema, and shapes without computing, for `torch.compile` and `torch.export`."""
    stack = draw(16, "int4" if is_int4 else "int8")
    rows = torch.tensor([3, 4, 5], dtype=torch.int32)
    arguments = (stack, rows, offsets, weights, True, dtype, is_int4)
    torch.library.opcheck(torch.ops.fastdlrm.quantized_lookup, arguments)


@pytest.mark.parametrize("is_int4", [False, True])
def test_kernel_and_definition_agree(is_int4: bool) -> None:
    stack = draw(24, "int4" if is_int4 else "int8")
    rows, offsets = jagged(BAGS)
    weights = torch.randn(len(rows), generator=torch.Generator().manual_seed(2))
    arguments = (stack, rows, offsets, weights, True, torch.float32, is_int4)
    torch.testing.assert_close(
        kernel.quantized_lookup(*arguments), definition.define_quantized_lookup(*arguments)
    )
