"""Tensors between processes: data by hand, refusals, BYTES and BF16."""

import numpy as np
import pytest

from fastdlrm.contracts.tensors import (
    DATATYPES,
    MAX_ELEMENTS,
    MAX_RANK,
    WireTensor,
    bfloat16_to_float32,
    count_elements,
    float32_to_bfloat16,
)
from fastdlrm.errors import RequestError


def test_raw_data_is_viewed_in_place() -> None:
    buffer = bytearray(b"\x01\x00\x00\x00\x02\x00\x00\x00")
    tensor = WireTensor.from_buffer("INT32", [2, 1], buffer)
    assert tensor.values().tolist() == [[1], [2]]
    buffer[0] = 7
    assert tensor.values().tolist() == [[7], [2]]
    assert tensor.num_elements == 2
    assert tensor.num_bytes == 8


@pytest.mark.parametrize("name", [name for name in DATATYPES if name not in ("BYTES", "BF16")])
def test_every_number_type_goes_through_an_array(name: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype=DATATYPES[name].dtype)
    tensor = WireTensor.from_array(array)
    assert tensor.datatype == name
    assert tensor.shape == (2, 3)
    again = WireTensor.from_buffer(name, tensor.shape, tensor.data.tobytes())
    np.testing.assert_array_equal(again.values(), array)
    listed = WireTensor.from_list(name, (2, 3), array.ravel().tolist())
    assert listed.data.tobytes() == array.tobytes()


def test_arrays_of_other_byte_order_and_layout_are_brought_into_form() -> None:
    array = np.array([[1, 2], [3, 4]], dtype=">i4").T
    tensor = WireTensor.from_array(array)
    assert tensor.data.tobytes() == np.array([1, 3, 2, 4], dtype="<i4").tobytes()
    assert tensor.shape == (2, 2)


def test_texts_lie_as_length_and_bytes() -> None:
    # u32 lengths: "ab" 2, "" 0, "é" 2 bytes of UTF-8
    packed = b"\x02\0\0\0ab\0\0\0\0\x02\0\0\0\xc3\xa9"
    tensor = WireTensor.from_texts(["ab", None, "é"])
    assert tensor.data.tobytes() == packed
    assert tensor.texts() == ["ab", "", "é"]
    assert tensor.items() == [b"ab", b"", "é".encode()]
    assert WireTensor.from_texts([b"\xff"]).items() == [b"\xff"]
    array = WireTensor.from_array(np.array([["a", "bcd"]]))
    assert array.shape == (1, 2)
    assert array.data.tobytes() == b"\x01\0\0\0a\x03\0\0\0bcd"


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 256, 70_000])
def test_texts_of_any_length(length: int) -> None:
    tensor = WireTensor.from_texts(["x" * length, "y"])
    assert tensor.data[:4].view("<u4")[0] == length
    assert tensor.texts() == ["x" * length, "y"]


def test_missing_numbers_are_nan() -> None:
    tensor = WireTensor.from_list("FP32", (3,), [None, 1, 0.5])
    np.testing.assert_array_equal(tensor.values(), np.array([np.nan, 1, 0.5], dtype=np.float32))


def test_bf16_by_hand() -> None:
    # 1.0 = 0x3F80; 0x3F808000 lies halfway: to even, 0x3F80; 0x3F818000 halfway: up to 0x3F82
    halfway = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001], dtype=np.uint32)
    assert float32_to_bfloat16(halfway.view(np.float32)).tolist() == [
        0x3F80,
        0x3F80,
        0x3F82,
        0x3F81,
    ]
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0xFF80], dtype=np.uint16)
    assert bfloat16_to_float32(bits).tolist() == [1.0, -2.0, float("inf"), float("-inf")]
    tricky = np.array([0x7F800001, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    assert np.isnan(bfloat16_to_float32(float32_to_bfloat16(tricky))).all()
    tensor = WireTensor.from_list("BF16", (2,), [1, -2.0])
    assert tensor.values().tolist() == [1.0, -2.0]


def test_every_bf16_number_survives_float32() -> None:
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    numbers = bfloat16_to_float32(bits)
    kept = ~np.isnan(numbers)
    np.testing.assert_array_equal(float32_to_bfloat16(numbers)[kept], bits[kept])


@pytest.mark.parametrize(
    ("datatype", "shape", "buffer", "message"),
    [
        ("INT128", [1], b"", "datatype 'INT128' is not known; allowed are BOOL"),
        ("INT32", [-1], b"", r"shape \[-1\] has a negative dimension"),
        ("INT32", [2**41], b"", "counts more than 1099511627776 elements"),
        ("INT32", [0, 2**41], b"", "counts more than"),
        ("INT32", [1] * 17, b"0000", "17 dimensions, 16 are allowed"),
        ("INT32", [2], b"0000", r"4 bytes of data, but shape \[2\] of INT32 takes 8"),
        ("FP64", [1], b"0" * 9, "9 bytes of data"),
        ("BOOL", [2], b"\0\2", "neither 0 nor 1"),
        ("BYTES", [2], b"\0" * 7, "7 bytes of data for the 2 BYTES elements"),
        ("BYTES", [0], b"\0" * 4, "4 bytes of data for the 0 BYTES elements"),
    ],
)
def test_raw_data_is_never_trusted(
    datatype: str, shape: list[int], buffer: bytes, message: str
) -> None:
    with pytest.raises(RequestError, match=f"^input 'C1': .*{message}"):
        WireTensor.from_buffer(datatype, shape, buffer, where="input 'C1'")


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "message"),
    [
        ("TEXT", [1], ["a"], "datatype 'TEXT' is not known"),
        ("INT32", [2], [1], r"1 values, but shape \[2\] takes 2"),
        ("INT32", [1], [1.5], "value 0 is 1.5; INT32 takes integers"),
        ("INT32", [2], [1, "7"], "value 1 is '7'; INT32 takes integers"),
        ("INT32", [1], [True], "value 0 is True; INT32 takes integers"),
        ("INT32", [1], [None], "value 0 is None; INT32 takes integers"),
        ("BOOL", [1], [1], "value 0 is 1; BOOL takes true and false"),
        ("FP32", [1], ["1"], "value 0 is '1'; FP32 takes numbers"),
        ("FP32", [1], [[1.0] * 20], r"value 0 is \[1.0, .*\.\.\.\]; FP32 takes numbers"),
        ("BYTES", [1], [7], "value 0 is 7; BYTES takes strings"),
        ("UINT8", [1], [256], "a value is outside the range of UINT8"),
        ("INT64", [1], [2**63], "a value is outside the range of INT64"),
        ("UINT64", [1], [-1], "a value is outside the range of UINT64"),
        ("FP32", [1], [1e39], "a value is outside the range of FP32"),
        ("FP16", [1], [65520.0], "a value is outside the range of FP16"),
        ("BF16", [1], [3.4e38], "a value is outside the range of BF16"),
        ("FP64", [1], [10**400], "a value is outside the range of FP64"),
        ("BYTES", [1], ["\ud800"], "a text cannot be written as UTF-8"),
    ],
)
def test_python_values_are_never_converted_silently(
    datatype: str, shape: list[int], values: list[object], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^input 'C1': .*{message}"):
        WireTensor.from_list(datatype, shape, values, where="input 'C1'")


def test_infinity_is_a_float() -> None:
    assert WireTensor.from_list("FP32", (1,), [float("inf")]).values()[0] == np.inf


def test_arrays_without_a_datatype_are_refused() -> None:
    with pytest.raises(RequestError, match="an array of complex128 has no datatype; convert it"):
        WireTensor.from_array(np.zeros(1, dtype=complex))
    with pytest.raises(RequestError, match="value 0 is 3; BYTES takes strings"):
        WireTensor.from_array(np.array([3], dtype=object))


@pytest.mark.parametrize(
    ("shape", "packed", "message"),
    [
        ((1,), b"\x05\0\0\0abcd", "element 0 of 1 ends at byte 9 of 8"),
        ((1,), b"\xff\xff\xff\xffabcd", "element 0 of 1 ends at byte 4294967299 of 8"),
        ((2,), b"\x03\0\0\0abc\0", "element 1 of 2 ends at byte 11 of 8"),
        ((1,), b"\x01\0\0\0abc", "2 bytes left after 1 elements"),
    ],
)
def test_lengths_of_texts_are_checked(shape: tuple[int, ...], packed: bytes, message: str) -> None:
    tensor = WireTensor.from_buffer("BYTES", shape, packed)
    with pytest.raises(RequestError, match=f"^input 'C1': {message}"):
        tensor.items(where="input 'C1'")


def test_reading_a_tensor_as_what_it_is_not() -> None:
    with pytest.raises(RequestError, match="a BYTES tensor has no numbers"):
        WireTensor.from_texts(["1"]).values()
    with pytest.raises(RequestError, match="a INT64 tensor has no texts; send BYTES"):
        WireTensor.from_list("INT64", (1,), [1]).items()
    with pytest.raises(RequestError, match="an element is not UTF-8 text"):
        WireTensor.from_texts([b"\xff"]).texts()


def test_counts_at_their_bounds() -> None:
    assert count_elements([MAX_ELEMENTS]) == MAX_ELEMENTS
    assert count_elements([1] * MAX_RANK) == 1
    assert count_elements([]) == 1
    assert count_elements([0, MAX_ELEMENTS]) == 0
    assert WireTensor.from_buffer("FP64", [0, MAX_ELEMENTS // 8], b"").values().size == 0
