"""Staged values of one feature -> 64-bit keys or float64 numbers, read from Arrow's buffers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.schema import DenseFeature, SparseFeature
from fastdlrm.data.keys import Keys, text_keys
from fastdlrm.errors import DataError


def buffer_view(array: pa.Array, dtype: type[np.generic], index: int = 1) -> NDArray[Any]:
    """A fixed-width buffer of an array as numpy, without a copy; what a null holds is undefined."""
    buffer = array.buffers()[index]
    if buffer is None:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(buffer, dtype=dtype)[array.offset : array.offset + len(array)]


def key_values(feature: SparseFeature, values: pa.Array, edges: Sequence[float]) -> Keys:
    """The key of each value; undefined where it is missing.

    Args:
        feature: Whose values they are.
        values: Single values, or the elements of all bags.
        edges: Inner bucket edges of key "quantile".

    Returns:
        Shape (len(values),).
    """
    if feature.key == "string":
        return hashed_texts(values)
    if feature.key == "quantile":
        numbers = buffer_view(values, np.float64)
        return np.searchsorted(np.asarray(edges), numbers, side="right").astype(np.uint64)
    return buffer_view(values, np.uint64)


def reference_keys(values: pa.Array, max_rows: int) -> Keys:
    """The keys that encoding "reference" numbers: a missing value is 0, and all are taken modulo.

    Args:
        values: Staged values of a feature of key "hex".
        max_rows: The modulus; 0 for none.

    Returns:
        Shape (len(values),).
    """
    keys = buffer_view(values, np.uint64)
    missing = missing_values(values)
    if missing is not None:
        keys = np.where(missing, np.uint64(0), keys)
    return keys % np.uint64(max_rows) if max_rows else keys


def hashed_texts(texts: pa.Array) -> Keys:
    """The key of each text of a string array, shape (len(texts),)."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.empty(0, dtype=np.uint64)
    octets = np.empty(0, np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    window = slice(texts.offset, texts.offset + len(texts) + 1)
    return text_keys(np.frombuffer(offsets, dtype=np.int32)[window], octets)


def missing_values(values: pa.Array) -> NDArray[np.bool_] | None:
    """Whether each value is missing (null, or NaN in a column of numbers); None where none is."""
    if pa.types.is_floating(values.type):
        missing = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        return missing if missing.any() else None
    if values.null_count == 0:
        return None
    return values.is_null().to_numpy(zero_copy_only=False)


def present_values(values: pa.Array) -> pa.Array:
    """The values that are not missing, of a bag column all elements."""
    if pa.types.is_list(values.type):
        return values.flatten()
    missing = missing_values(values)
    return values if missing is None else values.filter(pa.array(~missing))


def filled_numbers(feature: DenseFeature, values: pa.Array) -> NDArray[np.float64]:
    """A dense feature's values with `fill` in place of missing ones."""
    numbers = buffer_view(values, np.float64)
    missing = missing_values(values)
    return numbers if missing is None else np.where(missing, feature.fill, numbers)


def require_finite(feature: DenseFeature, encoded: NDArray[np.floating]) -> None:
    """Refuse numbers that no model can take.

    Raises:
        DataError: A value is infinite, or beyond float32.
    """
    if not np.isfinite(encoded).all():
        raise DataError(
            f"dense feature {feature.name!r}: a value is infinite or too large for float32; "
            "correct it; where its text stands for a missing value, prepare with it in "
            "data.source.missing"
        )
