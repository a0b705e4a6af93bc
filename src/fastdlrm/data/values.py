"""Arrays of raw values -> arrays of one type, with what is wrong with each value that has none.

Raw values are text, or whatever a Parquet file holds. A null stays a null: missing is not wrong.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

Flaws = dict[int, str]
"""By position: the value and what is wrong with it."""
Typed = tuple[pa.Array, Flaws]

_NOT_A_DIGIT = 255
_DIGITS = np.full(256, _NOT_A_DIGIT, dtype=np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)
_DIGITS[np.frombuffer(b"ABCDEF", dtype=np.uint8)] = np.arange(10, 16)
SOUND, MALFORMED, TOO_LARGE = 0, 1, 2
"""What `parse_id` makes of a text."""
_DATES = (pa.timestamp("us"), pa.timestamp("us", "UTC"))
_SHOWN = 40
"""Characters of a value shown in a message."""


def without_missing(values: pa.Array, missing: Sequence[str]) -> pa.Array:
    """The same values, with null for each text that stands for a missing one."""
    if not pa.types.is_string(values.type):
        return values
    is_present = np.ones(len(values), dtype=np.bool_)
    if "" in missing:
        is_present &= np.diff(_offsets(values)) > 0
    if others := [text for text in missing if text]:
        is_present &= ~_mask(pc.is_in(values, pa.array(others, pa.string())))
    if is_present.all():
        return values
    if values.null_count:
        is_present &= _mask(values.is_valid())
    _, offsets, data = values.buffers()
    valid = pa.py_buffer(np.packbits(is_present, bitorder="little"))
    if values.offset:
        offsets = pa.py_buffer(_offsets(values).copy())
    return pa.StringArray.from_buffers(len(values), offsets, data, valid)


def without_nan(values: pa.Array) -> pa.Array:
    """The same values, with null for each NaN."""
    if not pa.types.is_floating(values.type):
        return values
    is_nan = pc.is_nan(values)
    if not pc.any(is_nan).as_py():
        return values
    return pc.if_else(is_nan, pa.scalar(None, values.type), values)


def hex_ids(values: pa.Array) -> Typed:
    """Hexadecimal text as uint64."""
    return _ids(values, 16, "hexadecimal (digits 0-9 and a-f)", "beyond 64 bits")


def int_ids(values: pa.Array) -> Typed:
    """Whole numbers, as text or in any numeric type, as int64."""
    if pa.types.is_string(values.type):
        ids, flaws = _ids(values, 10, "a whole number", "beyond 64 bits (signed)")
        return ids.view(pa.int64()), flaws
    typed, bad = cast_each(without_nan(values), pa.int64())
    return typed, _flaws(values, bad, "is not a whole number of 64 bits (signed)")


def numbers(values: pa.Array) -> Typed:
    """Numbers, as text or in any numeric type, as float64; NaN is null."""
    typed, bad = cast_each(values, pa.float64())
    flaws = _flaws(
        values, bad, "is not a number (texts for missing values go into data.source.missing)"
    )
    typed = without_nan(typed)
    infinite = np.isinf(typed.fill_null(0).to_numpy(zero_copy_only=False))
    flaws |= _flaws(values, infinite, "is infinite or too large")
    return typed, flaws


def texts(values: pa.Array) -> Typed:
    """Values of any plain type as text: true and false for bool, 1 for the number 1.0."""
    typed, bad = cast_each(values, pa.string())
    return typed, _flaws(values, bad, "is not UTF-8 text")


def float_weights(values: pa.Array) -> Typed:
    """Numbers as float32."""
    typed, flaws = numbers(values)
    return pc.cast(typed, pa.float32()), beyond_float32(values, typed) | flaws


def beyond_float32(values: pa.Array, typed: pa.Array) -> Flaws:
    """The numbers that float32 cannot hold.

    Args:
        values: Raw.
        typed: The same as float64.
    """
    narrow = pc.cast(typed, pa.float32())
    infinite = np.isinf(narrow.fill_null(0).to_numpy(zero_copy_only=False))
    return _flaws(values, infinite, "is infinite or too large")


def time_type(values: pa.Array) -> pa.DataType | None:
    """The type of the first value that is a time: a number, or a date with or without a zone."""
    if pa.types.is_temporal(values.type):
        return pa.timestamp("us", getattr(values.type, "tz", None))
    for value in values.drop_null():
        for kind in (pa.float64(), *_DATES):
            if not cast_each(pa.array([value]), kind)[1][0]:
                return kind
    return None


def times(values: pa.Array, kind: pa.DataType | None) -> Typed:
    """Times of one type (None: none of them is a time).

    Returns:
        float64 for numbers; int64 microseconds since 1970 in UTC for dates, UTC being the zone of
        a date without one.
    """
    if kind == pa.float64():
        return numbers(values)
    if pa.types.is_temporal(values.type):
        return pc.cast(pc.cast(values, kind, safe=False), pa.int64()), {}
    typed, bad = cast_each(values, kind or _DATES[0])
    wanted = "a number or ISO 8601 date" if kind is None else f"written like the first ({kind})"
    return pc.cast(typed, pa.int64()), _flaws(values, bad, f"is not {wanted}")


def cast_each(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Cast what can be cast.

    Returns:
        The values, null where they cannot be cast, and whether each cannot.
    """
    try:
        return pc.cast(values, kind), np.zeros(len(values), dtype=np.bool_)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, kind), np.ones(1, dtype=np.bool_)
    middle = len(values) // 2
    left, left_bad = cast_each(values[:middle], kind)
    right, right_bad = cast_each(values[middle:], kind)
    return pa.concat_arrays([left, right]), np.concatenate([left_bad, right_bad])


PARSERS: dict[str, Callable[[pa.Array], Typed]] = {
    "hex": hex_ids,
    "int": int_ids,
    "string": texts,
    "quantile": numbers,
}
"""By the key of a sparse feature; `fastdlrm.data.calendar` has those of times."""


def shown(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, bytes):
        return repr(value[:_SHOWN])
    text = str(value)
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def _ids(values: pa.Array, base: int, wanted: str, limit: str) -> Typed:
    _, _, data = values.buffers()
    text = np.empty(0, np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    ids = np.empty(len(values), dtype=np.uint64)
    states = np.empty(len(values), dtype=np.uint8)
    _parse_ids(_offsets(values), text, np.uint64(base), ids, states)
    if values.null_count:
        is_null = _mask(values.is_null())
        states[is_null] = SOUND
        typed = pa.array(ids, mask=is_null)
    else:
        typed = pa.array(ids)
    flaws = _flaws(values, states == MALFORMED, f"is not {wanted}")
    return typed, flaws | _flaws(values, states == TOO_LARGE, f"is {limit}")


@njit(cache=True, nogil=True)
def _parse_ids(
    offsets: NDArray[np.int32],
    data: NDArray[np.uint8],
    base: np.uint64,
    ids: NDArray[np.uint64],
    states: NDArray[np.uint8],
) -> None:
    for i in range(len(ids)):
        ids[i], states[i] = parse_id(data, offsets[i], offsets[i + 1], base)


@njit(cache=True, nogil=True)
def parse_id(
    data: NDArray[np.uint8], begin: int, end: int, base: np.uint64
) -> tuple[np.uint64, int]:
    """Parse data[begin:end] as digits of base 10, signed (two's complement), or 16, unsigned.

    For use inside compiled code.

    Returns:
        The number, and SOUND, MALFORMED or TOO_LARGE; it is undefined where not sound.
    """
    largest = np.uint64(0xFFFFFFFFFFFFFFFF)
    signed_limit = np.uint64(1 << 63)
    before_last = largest // base
    is_negative = False
    if base == 10 and begin < end and (data[begin] == 43 or data[begin] == 45):
        is_negative = data[begin] == 45
        begin += 1
    value, state = np.uint64(0), SOUND
    if begin == end:
        state = MALFORMED
    for j in range(begin, end):
        digit = np.uint64(_DIGITS[data[j]])
        if digit >= base:
            return value, MALFORMED
        if value > before_last or value * base > largest - digit:
            state = TOO_LARGE
        value = value * base + digit
    if base == 10 and state == SOUND:
        if value > signed_limit or (value == signed_limit and not is_negative):
            state = TOO_LARGE
        if is_negative:
            value = ~value + np.uint64(1)
    return value, state


def _flaws(values: pa.Array, bad: NDArray[np.bool_], what: str) -> Flaws:
    if not bad.any():
        return {}
    return {int(i): f"{shown(values[int(i)].as_py())} {what}" for i in np.flatnonzero(bad)}


def _offsets(values: pa.StringArray) -> NDArray[np.int32]:
    offsets = values.buffers()[1]
    if offsets is None or not len(values):
        return np.zeros(1, dtype=np.int32)
    return np.frombuffer(offsets, dtype=np.int32)[values.offset : values.offset + len(values) + 1]


def _mask(values: pa.BooleanArray) -> NDArray[np.bool_]:
    return values.to_numpy(zero_copy_only=False)
