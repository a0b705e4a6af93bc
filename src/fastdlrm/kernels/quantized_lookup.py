"""Rows of embedding tables in few bits, and the lookup of bags in them.

A row of int8 holds D codes, each a number divided by the row's scale, and then the scale, bfloat16.
A row of int4 holds D / 2 bytes of two codes each, the first in the low half, then a scale and an
offset, bfloat16: a number is offset + scale * code, code 0 .. 15. Scales are rounded up and offsets
down before codes are computed, so that no number is further off than half a step of the stored
scale. Zeros of an int8 row, and rows of zeros, stay exact zeros.

Shapes: R rows of all tables together, D embedding dim, L ids in the batch.
"""

from typing import Literal, cast

import torch
from torch import Tensor

from fastdlrm.kernels.library import define, has_gpu_kernels, implement, on_first_call
from fastdlrm.kernels.lookup import Pooling, pooled_lookup

QuantizedDtype = Literal["int8", "int4"]

_TAIL_BYTES = {"int8": 2, "int4": 4}

MAX_NUMBER = 2.0**125
"""Largest magnitude of a number of a row: a range and its steps are then finite in bfloat16."""

MIN_SCALE = 2.0**-126
"""Smallest scale of a row that is not all zeros; below it bfloat16 is not exact."""


def quantized_row_bytes(dtype: QuantizedDtype, dim: int) -> int:
    """Bytes of a row of D numbers.

    Raises:
        ValueError: int4 with an odd D.
    """
    if dtype == "int4" and dim % 2:
        raise ValueError(f"int4 rows of {dim} numbers: an even embedding dim is needed; use int8")
    return (dim if dtype == "int8" else dim // 2) + _TAIL_BYTES[dtype]


def quantize_rows(rows: Tensor, dtype: QuantizedDtype) -> Tensor:
    """Rows in few bits.

    Args:
        rows: Shape (n, D), none beyond `MAX_NUMBER`.
        dtype: Of the result.

    Returns:
        Shape (n, `quantized_row_bytes`), uint8.

    Raises:
        ValueError: NaN, infinity or a number beyond `MAX_NUMBER`, or int4 with an odd D.
    """
    rows = rows.float()
    quantized_row_bytes(dtype, rows.shape[1])
    largest = rows.abs().amax(1, keepdim=True)
    if not (largest <= MAX_NUMBER).all():
        row = int((largest[:, 0] <= MAX_NUMBER).logical_not().nonzero()[0, 0])
        raise ValueError(
            f"row {row} holds NaN, infinity or a number beyond {MAX_NUMBER:.2g}, which {dtype} "
            "cannot hold; train again"
        )
    if dtype == "int8":
        scale = _scale(largest / 127)
        codes = torch.round(rows / _without_zero(scale)).clamp_(-127, 127).to(torch.int8)
        return torch.cat([codes.view(torch.uint8), _bytes(scale)], 1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    # an offset rounded down leaves no number below code 0
    offset = -_rounded_up(-low)
    scale = _scale((high - offset) / 15)
    codes = torch.round((rows - offset) / _without_zero(scale)).clamp_(0, 15).to(torch.uint8)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return torch.cat([packed, _bytes(scale), _bytes(offset)], 1)


def dequantize_rows(rows: Tensor, dtype: QuantizedDtype) -> Tensor:
    """The numbers that rows stand for.

    Args:
        rows: Shape (n, row bytes), uint8.
        dtype: Of the rows.

    Returns:
        Shape (n, D), float32.
    """
    body, tail = rows[:, : -_TAIL_BYTES[dtype]], rows[:, -_TAIL_BYTES[dtype] :]
    # a copy: of one row a slice is contiguous, and may begin at an odd byte
    numbers = tail.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()
    if dtype == "int8":
        return body.contiguous().view(torch.int8).float() * numbers
    codes = torch.stack([body & 15, body >> 4], 2).flatten(1)
    return torch.addcmul(numbers[:, 1:], codes.float(), numbers[:, :1])


def quantized_lookup(
    stack: Tensor,
    rows: Tensor,
    offsets: Tensor | None = None,
    weights: Tensor | None = None,
    pooling: Pooling = "sum",
    dtype: torch.dtype = torch.float32,
    *,
    row_dtype: QuantizedDtype,
) -> Tensor:
    """`pooled_lookup` in rows of few bits; a bag's result does not depend on other bags.

    Args:
        stack: Rows of all tables, shape (R, row bytes), uint8.
        rows: Row of each id, shape (L,), int32 or int64.
        offsets: Where each bag begins in `rows`, and the end, shape (num_bags + 1,); None when
            every bag holds exactly one id.
        weights: One weight an id, shape (L,), float32; None for all ones.
        pooling: How the rows of a bag become one vector.
        dtype: Of the result; sums are taken in float32.
        row_dtype: Of the rows.

    Returns:
        Shape (num_bags, D).
    """
    is_mean = pooling == "mean"
    is_int4 = row_dtype == "int4"
    return cast(Tensor, _quantized_lookup(stack, rows, offsets, weights, is_mean, dtype, is_int4))


def define_quantized_lookup(
    stack: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    is_mean: bool,
    dtype: torch.dtype,
    is_int4: bool,
) -> Tensor:
    """The definition: the rows of the batch become float32, and are pooled as those are."""
    picked = dequantize_rows(stack.index_select(0, rows), "int4" if is_int4 else "int8")
    places = torch.arange(len(rows), device=rows.device)
    pooling: Pooling = "mean" if is_mean else "sum"
    return pooled_lookup(picked, places, offsets, weights, pooling, dtype)


def _fake(
    stack: Tensor,
    rows: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    is_mean: bool,
    dtype: torch.dtype,
    is_int4: bool,
) -> Tensor:
    num_bags = rows.shape[0] if offsets is None else offsets.shape[0] - 1
    return stack.new_empty(num_bags, dim_of(stack, is_int4), dtype=dtype)


def dim_of(stack: Tensor, is_int4: bool) -> int:
    """D of the rows of a stack."""
    row_bytes = stack.shape[1]
    return 2 * (row_bytes - _TAIL_BYTES["int4"]) if is_int4 else row_bytes - _TAIL_BYTES["int8"]


def _rounded_up(numbers: Tensor) -> Tensor:
    """The least bfloat16 that is no smaller, as float32."""
    near = numbers.to(torch.bfloat16)
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near.float() < numbers, above, near).float()


def _scale(step: Tensor) -> Tensor:
    """The scale of rows that need this step at least; 0 for rows that need none."""
    return torch.where(step > 0, _rounded_up(step).clamp(min=MIN_SCALE), 0.0)


def _without_zero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.to(torch.bfloat16).flatten().view(torch.uint8).view(len(numbers), 2)


_quantized_lookup = define(
    "quantized_lookup(Tensor stack, Tensor rows, Tensor? offsets, Tensor? weights, bool is_mean,"
    " ScalarType dtype, bool is_int4) -> Tensor",
    define_quantized_lookup,
    fake=_fake,
)
implement(
    "quantized_lookup",
    "cpu",
    on_first_call("fastdlrm.kernels.cpu.quantized_lookup", "quantized_lookup"),
)

if has_gpu_kernels():
    import fastdlrm.kernels.cuda.quantized_lookup  # noqa: F401
