"""Times -> hour of the day and day of the week, in UTC."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastdlrm.contracts.schema import Key
from fastdlrm.data.values import Flaws, Typed, numbers, shown, texts, time_type, times

_YEAR_10000 = 253_402_300_800
"""In seconds since 1970; beyond it a number is likely in milliseconds."""


def calendar_ids(values: pa.Array, key: Key, time_format: str) -> Typed:
    """The hour or weekday of each time.

    Args:
        values: Raw times.
        key: hour_of_day or day_of_week.
        time_format: How they are written, as `SparseFeature.time_format` says.

    Returns:
        int64, null where the time is missing or wrong.
    """
    if time_format == "seconds":
        moments, flaws = _since_1970(values)
    elif time_format == "iso":
        moments, flaws = _iso(values)
    else:
        moments, flaws = _by_pattern(values, time_format)
    part = pc.hour if key == "hour_of_day" else pc.day_of_week
    return pc.cast(part(moments), pa.int64()), flaws


def _since_1970(values: pa.Array) -> Typed:
    seconds, flaws = numbers(values)
    beyond = pc.greater_equal(pc.abs(seconds), _YEAR_10000).fill_null(False)
    flaws |= {
        int(i): f"{shown(values[int(i)].as_py())} seconds since 1970 are beyond the year 9999"
        for i in np.flatnonzero(beyond.to_numpy(zero_copy_only=False))
    }
    seconds = pc.if_else(beyond, pa.scalar(None, pa.float64()), pc.floor(seconds))
    return pc.cast(seconds, pa.int64()).cast(pa.timestamp("s")), flaws


def _iso(values: pa.Array) -> Typed:
    kind = time_type(values)
    typed, flaws = times(values, None if kind == pa.float64() else kind)
    return typed.cast(pa.timestamp("us")), flaws


def _by_pattern(values: pa.Array, pattern: str) -> Typed:
    """Each distinct text is parsed once: logs name few hours many times."""
    written, flaws = texts(values)
    coded = written.dictionary_encode()
    parsed = pc.strptime(coded.dictionary, format=pattern, unit="s", error_is_null=True)
    moments = parsed.take(coded.indices)
    return moments, flaws | _unread(written, moments, pattern)


def _unread(written: pa.Array, moments: pa.Array, pattern: str) -> Flaws:
    lost = pc.and_(pc.is_valid(written), pc.is_null(moments)).to_numpy(zero_copy_only=False)
    return {
        int(i): f"{shown(written[int(i)].as_py())} is not a time written as {pattern!r}"
        for i in np.flatnonzero(lost)
    }
