from datetime import UTC, datetime

import pyarrow as pa
import pytest

from fastdlrm.data.calendar import calendar_ids

TEXT = pa.string()
# 21 October 2014 was a Tuesday, 1 January 1970 a Thursday, 9 September 2001 a Sunday.
TUESDAY, THURSDAY, SUNDAY = 1, 3, 6


def parts(values: pa.Array, time_format: str) -> tuple[list[int | None], list[int | None]]:
    """Hours and weekdays of values that are all sound."""
    hours, hour_flaws = calendar_ids(values, "hour_of_day", time_format)
    days, day_flaws = calendar_ids(values, "day_of_week", time_format)
    assert (hour_flaws, day_flaws) == ({}, {})
    assert hours.type == days.type == pa.int64()
    return hours.to_pylist(), days.to_pylist()


@pytest.mark.parametrize("kind", [TEXT, pa.int64(), pa.int32()])
def test_by_pattern(kind: pa.DataType) -> None:
    values = pa.array([14102100, 14102123, None, 14102100]).cast(kind)
    assert parts(values, "%y%m%d%H") == ([0, 23, None, 0], [TUESDAY, TUESDAY, None, TUESDAY])


@pytest.mark.parametrize("kind", [TEXT, pa.int64(), pa.float64()])
def test_seconds_since_1970(kind: pa.DataType) -> None:
    # 1e9 s is 2001-09-09 01:46:40 UTC; the second before 1970 was a Wednesday's last.
    values = pa.array([0, 1_000_000_000, -1, None]).cast(kind)
    assert parts(values, "seconds") == ([0, 1, 23, None], [THURSDAY, SUNDAY, 2, None])


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["2014-10-21 05:59:59", None, "2001-09-09T01:46:40"], TEXT),
        pa.array(["2014-10-21 07:59:59+02:00", None, "2001-09-09T01:46:40Z"], TEXT),
        pa.array(
            [datetime(2014, 10, 21, 5, tzinfo=UTC), None, datetime(2001, 9, 9, 1, tzinfo=UTC)]
        ),
    ],
)
def test_iso(values: pa.Array) -> None:
    assert parts(values, "iso") == ([5, None, 1], [TUESDAY, None, SUNDAY])


def test_an_hour_is_the_one_of_the_calendar() -> None:
    hours = [
        datetime(2014, 10, day, hour, tzinfo=UTC) for day in range(1, 32) for hour in range(24)
    ]
    expected = [t.hour for t in hours], [t.weekday() for t in hours]
    assert parts(pa.array([t.strftime("%y%m%d%H") for t in hours]), "%y%m%d%H") == expected
    assert parts(pa.array([int(t.timestamp()) for t in hours]), "seconds") == expected


@pytest.mark.parametrize(
    ("value", "time_format", "flaw"),
    [
        ("14102124", "%y%m%d%H", "'14102124' is not a time written as '%y%m%d%H'"),
        ("141021000", "%y%m%d%H", "'141021000' is not a time written as"),
        ("noon", "seconds", "'noon' is not a number"),
        ("1413867599000", "seconds", "'1413867599000' seconds since 1970 are beyond the year 9999"),
        ("1413867599", "iso", "'1413867599' is not a number or ISO 8601 date"),
        ("21.10.2014", "iso", "'21.10.2014' is not a number or ISO 8601 date"),
    ],
)
def test_what_is_no_time(value: str, time_format: str, flaw: str) -> None:
    ids, flaws = calendar_ids(pa.array([None, value], TEXT), "hour_of_day", time_format)
    assert list(flaws) == [1]
    assert flaws[1].startswith(flaw)
    assert ids[0].as_py() is None
