"""Rows in few bits over drawn rows: no number is further off than half a step of its row."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastdlrm.kernels.quantized_lookup import (
    MAX_NUMBER,
    MIN_SCALE,
    QuantizedDtype,
    dequantize_rows,
    quantize_rows,
)

FEW = settings(max_examples=200, deadline=None)
DTYPE = st.sampled_from(["int8", "int4"])
NUMBER = st.floats(-MAX_NUMBER, MAX_NUMBER, width=32)
NEAR_ONE = st.floats(-2, 2, width=32)


def rows_of(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(st.integers(1, 4), st.sampled_from([2, 4, 16]))
    return shape.flatmap(lambda s: arrays(np.float32, s, elements=numbers))


ROWS = st.one_of(rows_of(NUMBER), rows_of(NEAR_ONE))


def scales(stored: torch.Tensor, dtype: QuantizedDtype) -> np.ndarray:
    """The stored scale of each row, shape (n, 1), float64; of int4 an offset stands behind it."""
    end = stored.shape[1] - (2 if dtype == "int4" else 0)
    pair = stored[:, end - 2 : end].clone(memory_format=torch.contiguous_format)
    return pair.view(torch.bfloat16).double().numpy()


@FEW
@given(rows=ROWS, dtype=DTYPE)
@example(rows=np.array([[1e-45, 0.0]], np.float32), dtype="int8")
@example(rows=np.array([[-1e-45, 1e-40]], np.float32), dtype="int4")
@example(rows=np.array([[3.0, 3.0]], np.float32), dtype="int4")
@example(rows=np.array([[-MAX_NUMBER, MAX_NUMBER]], np.float32), dtype="int4")
def test_half_a_step_at_most(rows: np.ndarray, dtype: QuantizedDtype) -> None:
    stored = quantize_rows(torch.from_numpy(rows), dtype)
    found = dequantize_rows(stored, dtype).double().numpy()
    step = scales(stored, dtype)
    assert np.isfinite(found).all()
    wide = rows.astype(np.float64)
    # what is computed in float32 on the way rounds at the size of the row's numbers
    rounding = 4 * float(np.finfo(np.float32).eps) * np.abs(wide).max(1, keepdims=True)
    assert (np.abs(found - wide) <= step / 2 + rounding + 2.0**-149).all()


@FEW
@given(rows=ROWS, dtype=DTYPE)
def test_the_step_is_as_small_as_the_range_allows(rows: np.ndarray, dtype: QuantizedDtype) -> None:
    """Rounding makes it at most 2^-7 larger, an offset in bfloat16 that much of its size."""
    stored = quantize_rows(torch.from_numpy(rows), dtype)
    wide = rows.astype(np.float64)
    if dtype == "int8":
        needed = np.abs(wide).max(1, keepdims=True) / 127
    else:
        low, high = wide.min(1, keepdims=True), wide.max(1, keepdims=True)
        needed = (high - low + np.abs(low) * 2**-7) / 15
    assert (scales(stored, dtype) <= needed * (1 + 2**-7) * (1 + 1e-6) + MIN_SCALE).all()


@FEW
@given(rows=ROWS)
def test_int8_is_symmetric_and_keeps_zeros(rows: np.ndarray) -> None:
    found, mirrored = (
        dequantize_rows(quantize_rows(torch.from_numpy(x), "int8"), "int8") for x in (rows, -rows)
    )
    assert torch.equal(found, -mirrored)
    assert not found.numpy()[rows == 0].any()


@FEW
@given(rows=ROWS, dtype=DTYPE)
def test_rows_do_not_depend_on_their_neighbours(rows: np.ndarray, dtype: QuantizedDtype) -> None:
    together = quantize_rows(torch.from_numpy(rows), dtype)
    alone = [quantize_rows(torch.from_numpy(rows[r : r + 1]), dtype) for r in range(len(rows))]
    assert torch.equal(together, torch.cat(alone))
