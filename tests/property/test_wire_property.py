"""Requests on the wire: any tensors survive every form, and no damage gets past the checks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastdlrm.contracts.parameters import Parameters
from fastdlrm.contracts.payload import pack, unpack
from fastdlrm.contracts.tensors import (
    BYTES,
    DATATYPES,
    WireTensor,
    bfloat16_to_float32,
    float32_to_bfloat16,
)
from fastdlrm.contracts.wire import (
    HEADER_LENGTH,
    Infer,
    Outcome,
    RequestedOutput,
    decode_infer,
    decode_outcome,
    encode_infer,
    encode_outcome,
    read_header_length,
)
from fastdlrm.errors import RequestError
from fastdlrm.serve.grpc_messages import InferRequest, infer_of, parse
from tests.grpc_client import request_of

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TEXTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), st.just("x" * 200))


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = False, utf8: bool = False) -> WireTensor:
    """Any tensor; its numbers finite or NaN, its texts UTF-8, where JSON must hold them."""
    name = draw(st.sampled_from(list(DATATYPES)))
    shape = draw(SHAPES)
    count = int(np.prod(shape, dtype=np.int64))
    if name == BYTES:
        items = TEXTS if utf8 else st.one_of(TEXTS, st.binary(max_size=6))
        return WireTensor.from_texts(draw(st.lists(items, min_size=count, max_size=count)), shape)
    dtype = DATATYPES[name].dtype
    data = draw(arrays.arrays(dtype, (count,)))
    if finite and name == "BF16":
        numbers = bfloat16_to_float32(data)
        data = float32_to_bfloat16(np.where(np.isinf(numbers), np.float32(0), numbers))
    elif finite and dtype.kind == "f":
        data = np.where(np.isinf(data), dtype.type(0), data)
    return WireTensor(name, shape, data)


@st.composite
def requests(draw: st.DrawFn, *, finite: bool = False, utf8: bool = False) -> Infer:
    """Any request."""
    parameters = Parameters(
        timeout_us=draw(st.sampled_from([0, 1, 2**53])),
        priority=draw(st.sampled_from([0, 1, 2**32 - 1])),
        top_k=draw(st.sampled_from([None, 1, 2**31 - 1])),
        binary_data_output=draw(st.booleans()),
    )
    return Infer(
        inputs=draw(st.dictionaries(NAMES, tensors(finite=finite, utf8=utf8), max_size=4)),
        id=draw(NAMES),
        parameters=parameters,
        outputs=tuple(
            RequestedOutput(name, draw(st.sampled_from([None, True, False])))
            for name in draw(st.lists(NAMES, unique=True, max_size=2))
        ),
    )


def assert_same(found: dict[str, WireTensor], expected: dict[str, WireTensor]) -> None:
    """Same names in the same order, datatypes, shapes and numbers; NaNs of any bits are one."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name][:2] == tensor[:2]
        if tensor.datatype == BYTES:
            assert found[name].data.tobytes() == tensor.data.tobytes()
        else:
            np.testing.assert_array_equal(found[name].values(), tensor.values())


@given(requests(), st.data())
def test_binary_bodies(infer: Infer, data: st.DataObject) -> None:
    in_json = {
        name
        for name, tensor in infer.inputs.items()
        if DATATYPES[tensor.datatype].kind in ("int", "bool") and data.draw(st.booleans())
    }
    headers, body = encode_infer(infer, binary=infer.inputs.keys() - in_json)
    found = decode_infer(body, read_header_length(headers.get(HEADER_LENGTH)))
    assert_same(found.inputs, infer.inputs)
    assert (found.id, found.parameters, found.outputs) == (
        infer.id,
        infer.parameters,
        infer.outputs,
    )


@given(requests(finite=True, utf8=True))
def test_json_bodies(infer: Infer) -> None:
    headers, body = encode_infer(infer, binary=False)
    assert HEADER_LENGTH not in headers
    assert_same(decode_infer(body).inputs, infer.inputs)


@given(requests(finite=True, utf8=True))
def test_answers(infer: Infer) -> None:
    outcome = Outcome(model_name="m", outputs=infer.inputs)
    asked = tuple(RequestedOutput(name, i % 2 == 0) for i, name in enumerate(infer.inputs))
    for outputs in ((), asked):
        request = Infer(inputs={}, parameters=infer.parameters, outputs=outputs)
        headers, chunks = encode_outcome(outcome, request)
        length = read_header_length(headers.get(HEADER_LENGTH))
        assert_same(decode_outcome(b"".join(chunks), length).outputs, infer.inputs)


@given(requests())
def test_grpc_messages(infer: Infer) -> None:
    found = infer_of(parse(InferRequest, request_of(infer).SerializeToString()))
    assert_same(found.inputs, infer.inputs)
    assert found.id == infer.id


@given(requests(), st.integers(0, 9))
def test_payloads(infer: Infer, room: int) -> None:
    payload = pack(infer.inputs)
    memory = bytearray(payload.size + room)
    payload.write_into(memoryview(memory))
    assert_same(unpack(memoryview(memory)), infer.inputs)


@given(requests(), st.data())
def test_a_body_that_is_cut_is_refused(infer: Infer, data: st.DataObject) -> None:
    headers, body = encode_infer(infer)
    length = read_header_length(headers.get(HEADER_LENGTH))
    stop = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(RequestError):
        decode_infer(body[:stop], length)
    with pytest.raises(RequestError):
        decode_infer(body + b"x", length)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-1, 250)))
def test_any_bytes_are_a_request_or_a_request_error(body: bytes, length: int | None) -> None:
    for read in (
        lambda: decode_infer(body, length),
        lambda: infer_of(parse(InferRequest, body)),
        lambda: unpack(memoryview(body)),
    ):
        try:
            read()
        except RequestError as error:
            assert str(error)
