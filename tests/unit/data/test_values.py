import random
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from fastdlrm.data import values
from fastdlrm.data.values import float_weights, hex_ids, int_ids, numbers, texts, times


def _text(*items: str | None) -> pa.StringArray:
    return pa.array(items, pa.string())


def _check(
    typed: values.Typed, expected: list[object], flaws: dict[int, str] | None = None
) -> None:
    """Compare the values that are not flawed, and all flaws."""
    found, found_flaws = typed
    assert found_flaws == (flaws or {})
    assert [v for i, v in enumerate(found.to_pylist()) if i not in found_flaws] == expected


def test_hexadecimal_up_to_64_bits() -> None:
    typed = hex_ids(_text("68fd1e64", "0", "FfFfFfFfFfFfFfFf", "80000000", "00000000000000001f"))
    _check(typed, [0x68FD1E64, 0, 2**64 - 1, 2**31, 31])
    assert typed[0].type == pa.uint64()


def test_what_is_not_hexadecimal() -> None:
    not_hex = "is not hexadecimal (digits 0-9 and a-f)"
    flaws = {
        0: "'1ffffffffffffffffff' is beyond 64 bits",
        1: f"'-1' {not_hex}",
        2: f"'0x1f' {not_hex}",
        3: f"'1_f' {not_hex}",
        4: f"'' {not_hex}",
        5: f"'é' {not_hex}",
        8: "'10000000000000000' is beyond 64 bits",
    }
    items = ["1ffffffffffffffffff", "-1", "0x1f", "1_f", "", "é", None, "a", "1" + "0" * 16]
    _check(hex_ids(_text(*items)), [None, 10], flaws)


def test_whole_numbers_of_text_up_to_64_bits() -> None:
    typed = int_ids(
        _text("-9223372036854775808", "9223372036854775807", "+007", "-0", "2147483648")
    )
    _check(typed, [-(2**63), 2**63 - 1, 7, 0, 2**31])
    assert typed[0].type == pa.int64()


def test_what_is_not_a_whole_number() -> None:
    flaws = {
        0: "'9223372036854775808' is beyond 64 bits (signed)",
        1: "'-9223372036854775809' is beyond 64 bits (signed)",
        2: "'18446744073709551616' is beyond 64 bits (signed)",
        3: f"{'1' * 40!r}... is beyond 64 bits (signed)",
        4: "'1.0' is not a whole number",
        5: "'1e3' is not a whole number",
        6: "'0x1f' is not a whole number",
        7: "'-' is not a whole number",
        8: "'1_000' is not a whole number",
    }
    items = ["9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" * 50]
    items += ["1.0", "1e3", "0x1f", "-", "1_000"]
    _check(int_ids(_text(*items)), [], flaws)


@pytest.mark.parametrize("base", [10, 16])
def test_random_ids_are_parsed_as_python_does(base: int) -> None:
    draw = random.Random(base)
    ids = [draw.getrandbits(draw.randrange(1, 64)) for _ in range(5000)]
    if base == 10:
        ids = [i * draw.choice([1, -1]) for i in ids]
    shown = [f"{i:d}" if base == 10 else f"{i:x}" for i in ids]
    parse = int_ids if base == 10 else hex_ids
    _check(parse(_text(*shown)), [int(text, base) for text in shown])


def test_whole_numbers_of_other_types() -> None:
    _check(int_ids(pa.array([1.0, None, float("nan"), -(2.0**62)])), [1, None, None, -(2**62)])
    _check(int_ids(pa.array([True, False])), [1, 0])
    _check(int_ids(pa.array([Decimal("7.00")])), [7])
    wrong = "is not a whole number of 64 bits (signed)"
    _check(int_ids(pa.array([1.5, 2.0])), [2], {0: f"'1.5' {wrong}"})
    _check(int_ids(pa.array([2**63, 5], pa.uint64())), [5], {0: f"'{2**63}' {wrong}"})


def test_numbers() -> None:
    typed = numbers(_text("-3", "1e-3", ".5", "nan", "NaN", None, "123456789.123456789"))
    _check(typed, [-3.0, 0.001, 0.5, None, None, None, 123456789.123456789])
    _check(numbers(pa.array([Decimal("1.25")])), [1.25])
    _check(numbers(pa.array([True])), [1.0])


def test_what_is_not_a_number() -> None:
    hint = "(texts for missing values go into data.source.missing)"
    flaws = {
        0: f"'abc' is not a number {hint}",
        1: "'-inf' is infinite or too large",
        2: "'1e400' is infinite or too large",
        4: f"'1,5' is not a number {hint}",
        5: f"'1_0' is not a number {hint}",
    }
    _check(numbers(_text("abc", "-inf", "1e400", "2", "1,5", "1_0")), [2.0], flaws)


def test_weights_are_float32() -> None:
    typed = float_weights(_text("0.5", "1e300", None))
    _check(typed, [0.5, None], {1: "'1e300' is infinite or too large"})
    assert typed[0].type == pa.float32()


def test_texts_of_other_types() -> None:
    _check(texts(pa.array([True, False, None])), ["true", "false", None])
    _check(texts(pa.array([1.0, 1.5])), ["1", "1.5"])
    _check(texts(pa.array([-12])), ["-12"])
    _check(texts(pa.array([date(2024, 2, 29)])), ["2024-02-29"])
    _check(texts(pa.array([b"ab", b"\xff"])), ["ab"], {1: "b'\\xff' is not UTF-8 text"})


def test_missing_texts_become_null() -> None:
    array = _text("x", "", "?", "NA", "na", None)
    assert values.without_missing(array, ["", "?", "NA"]).to_pylist() == [
        "x",
        None,
        None,
        None,
        "na",
        None,
    ]
    assert values.without_missing(array[1:5], ["?"]).to_pylist() == ["", None, "NA", "na"]
    assert values.without_missing(array, []).to_pylist() == array.to_pylist()
    assert values.without_missing(_text(), [""]).to_pylist() == []
    assert values.without_missing(pa.array([1]), ["1"]).to_pylist() == [1]


def test_bad_values_are_found_among_many() -> None:
    items = [str(i) for i in range(1000)]
    items[0] = items[517] = items[999] = "x"
    typed, bad = values.cast_each(_text(*items), pa.float64())
    assert bad.nonzero()[0].tolist() == [0, 517, 999]
    assert typed.to_pylist() == [None if item == "x" else float(item) for item in items]


def _micros(*args: int) -> int:
    return int(datetime(*args, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["1700000000", "3.5"], [1700000000.0, 3.5]),
        (["2024-02-29", "2024-03-01 10:00:00"], [_micros(2024, 2, 29), _micros(2024, 3, 1, 10)]),
        (["2024-02-29T10:00:00Z", "2024-02-29T10:00:00+02:00"], None),
    ],
)
def test_times_of_text(items: list[str], expected: list[float] | None) -> None:
    array = _text(None, *items)
    expected = expected or [_micros(2024, 2, 29, 10), _micros(2024, 2, 29, 8)]
    _check(times(array, values.time_type(array)), [None, *expected])


def test_times_of_dates() -> None:
    days = pa.array([date(1970, 1, 2)])
    _check(times(days, values.time_type(days)), [86_400_000_000])
    nanos = pa.array([1_500], pa.timestamp("ns", "Europe/Paris"))
    _check(times(nanos, values.time_type(nanos)), [1])


def test_what_is_not_a_time() -> None:
    mixed = _text("soon", "5", "2024-02-29")
    hint = "(texts for missing values go into data.source.missing)"
    flaws = {0: f"'soon' is not a number {hint}", 2: f"'2024-02-29' is not a number {hint}"}
    _check(times(mixed, values.time_type(mixed)), [5.0], flaws)
    dates = _text("2024-02-29", "5")
    flaws = {1: "'5' is not written like the first (timestamp[us])"}
    _check(times(dates, values.time_type(dates)), [_micros(2024, 2, 29)], flaws)
    never = _text("soon")
    flaws = {0: "'soon' is not a number or ISO 8601 date"}
    _check(times(never, values.time_type(never)), [], flaws)
