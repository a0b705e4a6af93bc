"""Bodies of requests and answers: bytes by hand, both forms, and every refusal."""

import json

import numpy as np
import pytest

from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.contracts.wire import (
    HEADER_LENGTH,
    Infer,
    Outcome,
    Parameters,
    RequestedOutput,
    decode_error,
    decode_infer,
    decode_outcome,
    encode_error,
    encode_infer,
    encode_outcome,
    read_header_length,
)
from fastdlrm.errors import RequestError


def body_of(*inputs: dict[str, object], **fields: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def number(**fields: object) -> dict[str, object]:
    return {"name": "I1", "datatype": "FP32", "shape": [2], "data": [1, 2.5], **fields}


def binary(size: int, **fields: object) -> dict[str, object]:
    found = number(parameters={"binary_data_size": size}, **fields)
    found.pop("data")
    return found


def test_json_request_by_hand() -> None:
    text = {"name": "C1", "datatype": "BYTES", "shape": [2, 1], "data": [["é"], [None]]}
    body = body_of(
        number(),
        text,
        id="7",
        model_name="body",
        parameters={"timeout": 20_000, "priority": 1, "top_k": 3, "sequence_id": 9},
        outputs=[{"name": "score", "parameters": {"binary_data": True}}, {"name": "item_index"}],
    )
    infer = decode_infer(body, model_name="path", model_version="2")
    assert (infer.model_name, infer.model_version, infer.id) == ("path", "2", "7")
    assert infer.parameters == Parameters(timeout_us=20_000, priority=1, top_k=3)
    assert infer.outputs == (RequestedOutput("score", True), RequestedOutput("item_index"))
    assert infer.inputs["I1"].values().tolist() == [1.0, 2.5]
    assert infer.inputs["C1"].texts() == ["é", ""]
    assert infer.inputs["C1"].shape == (2, 1)
    assert decode_infer(body).model_name == "body"


def test_binary_request_by_hand() -> None:
    flag = {"name": "B", "datatype": "BOOL", "shape": [1], "data": [True]}
    text = binary(9, name="C1", datatype="BYTES")
    header = body_of(binary(8), flag, text)
    raw = b"\x00\x00\x80\x3f\x00\x00\x20\x40" + b"\x01\0\0\0a\0\0\0\0"  # 1.0, 2.5; "a", ""
    body = bytearray(header + raw)
    infer = decode_infer(memoryview(body), len(header))
    assert infer.inputs["I1"].values().tolist() == [1.0, 2.5]
    assert infer.inputs["B"].values().tolist() == [True]
    assert infer.inputs["C1"].items() == [b"a", b""]
    body[len(header) + 3] = 0xBF  # a view of the body: its sign bit changes the number
    assert infer.inputs["I1"].values().tolist() == [-1.0, 2.5]


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 3], [1, 2, 3, 4, 5, 6]),
        ([2, 3], [[1, 2, 3], [4, 5, 6]]),
        ([1, 2, 3], [[[1, 2, 3], [4, 5, 6]]]),
        ([6], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_data_is_flat_or_nested_as_its_shape(shape: list[int], data: list[object]) -> None:
    infer = decode_infer(body_of(number(datatype="INT64", shape=shape, data=data)))
    assert infer.inputs["I1"].shape == tuple(shape)
    assert infer.inputs["I1"].data.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("shape", "data"),
    [([0], []), ([0, 3], []), ([2, 0], [[], []]), ([2, 0], [])],
)
def test_data_of_no_element(shape: list[int], data: list[object]) -> None:
    assert decode_infer(body_of(number(shape=shape, data=data))).inputs["I1"].data.size == 0


def test_a_scalar_is_an_array_of_one() -> None:
    tensor = decode_infer(body_of(number(shape=[], data=[5]))).inputs["I1"]
    assert tensor.values().shape == ()
    assert float(tensor.values()) == 5.0


BAD_BODIES = [
    (b"", "request body: Input data was truncated; see GET /openapi.json for its form"),
    (b"[1]", "request body: Expected `object`, got `array`"),
    (b'{"inputs": 3}', "Expected `array`, got `int` - at `\\$.inputs`"),
    (b"{}", "Object missing required field `inputs`"),
    (b'{"inputs": [{"name": "\xff"}]}', "request body: 'utf-8' codec can't decode"),
    (b'{"parameters": {"a": ' + b"[" * 50_000, "request body: JSON is nested too deeply"),
    (body_of({"name": "I1", "shape": [1], "data": [1]}), "missing required field `datatype`"),
    (body_of(number(shape=["2"])), "Expected `int`, got `str` - at `\\$.inputs\\[0\\].shape"),
    (body_of(number(), number()), "input 'I1': sent twice; send each input once"),
    (body_of(number(datatype="float")), "input 'I1': datatype 'float' is not known"),
    (body_of(number(shape=[-2])), r"input 'I1': shape \[-2\] has a negative dimension"),
    (body_of(number(shape=[3])), r"input 'I1': 2 values, but shape \[3\] takes 3"),
    (body_of(number(data=5)), "input 'I1': data is not an array"),
    (body_of(number(data=None)), "input 'I1': data is not an array"),
    (body_of(number(data=[1, "2"])), "input 'I1': value 1 is '2'; FP32 takes numbers"),
    (body_of(number(data=[1, [2]])), r"input 'I1': value 1 is \[2\]; FP32 takes numbers"),
    (b'{"inputs":[{"name":"I1","datatype":"FP32","shape":[1],"data":[NaN]}]}', "malformed"),
    (
        b'{"inputs":[{"name":"I1","datatype":"FP32","shape":[1],"data":[1e999]}]}',
        "input 'I1': data: Number out of range",
    ),
    (body_of(number(data=[1, 1e39])), "input 'I1': a value is outside the range of FP32"),
    (
        body_of(number(shape=[2, 1], data=[[1]])),
        r"data nested 1 deep holds an array of 1, but shape \[2, 1\] says 2; nest the data",
    ),
    (
        body_of(number(shape=[2, 1], data=[[1], [2, 3]])),
        r"data nested 2 deep holds an array of 2, but shape \[2, 1\] says 1",
    ),
    (
        body_of(number(shape=[2, 1], data=[[1], 2])),
        "data nested 2 deep holds a value that is no array",
    ),
    (
        body_of({"name": "I1", "datatype": "FP32", "shape": [1]}),
        "input 'I1': no data; send either data or binary_data_size",
    ),
    (body_of(binary(8)), "input 'I1': binary_data_size, but the body is all JSON; send the header"),
    (
        body_of(number(parameters={"binary_data_size": 8})),
        "input 'I1': both data and binary_data_size",
    ),
    (
        body_of(number(parameters={"shared_memory_region": "r"})),
        "input 'I1': shared memory is not supported; send the data",
    ),
    (body_of(number(), parameters={"timeout_ms": 5}), "parameter 'timeout_ms' is not known"),
    (
        body_of(number(), parameters={"timeout": -1}),
        "parameter 'timeout' is -1; allowed is an integer, microseconds, 0 to",
    ),
    (body_of(number(), parameters={"timeout": 1.5}), "parameter 'timeout' is 1.5; allowed"),
    (body_of(number(), parameters={"priority": True}), "parameter 'priority' is True"),
    (body_of(number(), parameters={"top_k": 0}), "'top_k' is 0; allowed is an integer, 1 to"),
    (
        body_of(number(), parameters={"binary_data_output": 1}),
        "parameter 'binary_data_output' is 1; allowed is true or false",
    ),
    (
        body_of(number(), outputs=[{"name": "a"}, {"name": "a"}]),
        "output 'a': asked for twice; ask for each output once",
    ),
    (
        body_of(number(), outputs=[{"name": "a", "parameters": {"classification": 2}}]),
        "output 'a': classification is not supported; send the request's parameter top_k",
    ),
    (
        body_of(number(), outputs=[{"name": "a", "parameters": {"shared_memory_region": "r"}}]),
        "output 'a': shared memory is not supported; read the answer from the response",
    ),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
def test_wrong_json_bodies_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode_infer(body)


@pytest.mark.parametrize(
    ("sizes", "raw", "message"),
    [
        ([8], b"1234567", "input 'I1': binary_data_size 8, but 7 bytes are left in the body"),
        ([8], b"123456789", "^body: 1 bytes are left after the inputs"),
        ([7], b"1234567", r"input 'I1': 7 bytes of data, but shape \[2\] of FP32 takes 8"),
        ([-8], b"12345678", "input 'I1': binary_data_size -8, but 8 bytes are left"),
        ([8, 8], b"1" * 15, "input 'I2': binary_data_size 8, but 7 bytes are left"),
        ([2**70], b"1" * 8, "input 'I1': binary_data_size 1180591620717411303424, but 8 bytes"),
        ([], b"1", "^body: 1 bytes are left after the inputs"),
    ],
)
def test_sizes_of_binary_data_are_never_trusted(sizes: list[int], raw: bytes, message: str) -> None:
    header = body_of(*[binary(size, name=f"I{i}") for i, size in enumerate(sizes, start=1)])
    with pytest.raises(RequestError, match=message):
        decode_infer(header + raw, len(header))


def test_the_header_must_lie_in_the_body() -> None:
    with pytest.raises(RequestError, match="5 bytes of JSON in a body of 2; send the length"):
        decode_infer(b"{}", 5)
    assert read_header_length(None) is None
    assert read_header_length(b"12") == 12
    for wrong in ("-1", "1.5", "", "1 ", "²", "9" * 16):
        with pytest.raises(RequestError, match="is not a number of bytes; send the length"):
            read_header_length(wrong)


def sample(**fields: object) -> Infer:
    return Infer(
        inputs={
            "I1": WireTensor.from_array(np.array([1.5, np.nan], dtype=np.float32)),
            "C1": WireTensor.from_texts(["a", ""]),
            "n": WireTensor.from_list("INT64", (1, 1), [2**63 - 1]),
            "h": WireTensor.from_list("BF16", (1,), [1.0]),
        },
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("form", [True, False, ("I1",), ("C1", "h")])
def test_what_a_client_writes_is_read_back(form: bool | tuple[str, ...]) -> None:
    sent = sample(
        id="a",
        parameters=Parameters(timeout_us=5, priority=2, top_k=1, binary_data_output=True),
        outputs=(RequestedOutput("score", False), RequestedOutput("item_index")),
    )
    headers, body = encode_infer(sent, binary=form)
    assert (HEADER_LENGTH in headers) == (form is not False)
    found = decode_infer(body, read_header_length(headers.get(HEADER_LENGTH)))
    assert list(found.inputs) == list(sent.inputs)
    for name, tensor in sent.inputs.items():
        assert found.inputs[name][:2] == tensor[:2]
        assert found.inputs[name].data.tobytes() == tensor.data.tobytes()
    assert (found.id, found.parameters, found.outputs) == ("a", sent.parameters, sent.outputs)


def outcome() -> Outcome:
    return Outcome(
        model_name="m",
        model_version="3",
        id="a",
        outputs={
            "item_index": WireTensor.from_list("INT64", (2,), [1, 0]),
            "score": WireTensor.from_list("FP32", (2,), [0.5, 0.25]),
        },
    )


def test_answer_in_json_by_hand() -> None:
    headers, chunks = encode_outcome(outcome(), sample())
    assert headers == {"content-type": "application/json"}
    assert json.loads(b"".join(chunks)) == {
        "model_name": "m",
        "model_version": "3",
        "id": "a",
        "outputs": [
            {"name": "item_index", "datatype": "INT64", "shape": [2], "data": [1, 0]},
            {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.5, 0.25]},
        ],
    }


@pytest.mark.parametrize(
    ("default", "outputs", "names", "in_binary"),
    [
        (True, (), ["item_index", "score"], {"item_index", "score"}),
        (False, (RequestedOutput("score", True),), ["score"], {"score"}),
        (True, (RequestedOutput("score", False),), ["score"], set()),
        (
            True,
            (RequestedOutput("score"), RequestedOutput("item_index", False)),
            ["score", "item_index"],
            {"score"},
        ),
    ],
)
def test_each_output_is_answered_as_asked(
    default: bool, outputs: tuple[RequestedOutput, ...], names: list[str], in_binary: set[str]
) -> None:
    infer = sample(outputs=outputs, parameters=Parameters(binary_data_output=default))
    headers, chunks = encode_outcome(outcome(), infer)
    body = b"".join(chunks)
    length = read_header_length(headers.get(HEADER_LENGTH))
    assert (length is None) == (not in_binary)
    written = json.loads(body[:length])["outputs"]
    assert [output["name"] for output in written] == names
    assert {output["name"] for output in written if "data" not in output} == in_binary
    found = decode_outcome(body, length)
    assert (found.model_name, found.model_version, found.id) == ("m", "3", "a")
    assert found.outputs["score"].values().tolist() == [0.5, 0.25]


def test_outputs_that_are_not_there_are_refused() -> None:
    infer = sample(outputs=(RequestedOutput("scores"),))
    with pytest.raises(RequestError, match="output 'scores' is not there; available are score"):
        infer.check_outputs(("score",))
    sample(outputs=(RequestedOutput("score"),)).check_outputs(("score",))


def test_what_json_cannot_write_is_refused() -> None:
    infinite = Infer(inputs={"I1": WireTensor.from_list("FP64", (1,), [float("-inf")])})
    with pytest.raises(RequestError, match="input 'I1': an infinity cannot be written in JSON"):
        encode_infer(infinite, binary=False)
    raw = Infer(inputs={"C1": WireTensor.from_texts([b"\xff"])})
    with pytest.raises(RequestError, match="input 'C1': an element is not UTF-8 text"):
        encode_infer(raw, binary=False)


def test_wrong_answers_are_refused() -> None:
    with pytest.raises(RequestError, match=r"response body: .*; is a server"):
        decode_outcome(b"{}")
    with pytest.raises(RequestError, match="output 'score': no data"):
        decode_outcome(
            b'{"model_name":"m","outputs":[{"name":"score","datatype":"FP32","shape":[1]}]}'
        )


def test_null_stands_for_what_an_answer_may_lack() -> None:
    output = '{"name":"score","datatype":"FP32","shape":[1],"parameters":null,"data":[0.5]}'
    optional = '"model_version":null,"id":null,"parameters":null'
    found = decode_outcome(f'{{"model_name":"m",{optional},"outputs":[{output}]}}'.encode())
    assert (found.model_name, found.model_version, found.id) == ("m", "", "")
    assert found.outputs["score"].values().tolist() == [0.5]
    with pytest.raises(RequestError, match=r"Expected `str \| null`, got `int` - at `\$.id`"):
        decode_outcome(b'{"model_name":"m","id":7,"outputs":[]}')


def test_errors_are_json() -> None:
    assert json.loads(encode_error('a "b"')) == {"error": 'a "b"'}
    assert decode_error(encode_error("no")) == "no"
    assert decode_error(b"<html>502</html>") == "<html>502</html>"
    assert decode_error(b"\xff") == "\ufffd"


def test_long_values_are_cut_in_messages() -> None:
    deep = "[" * 300 + "]" * 300
    body = f'{{"inputs":[{{"name":"{"n" * 5000}","datatype":"INT8","shape":[1],"data":[{deep}]}}]}}'
    with pytest.raises(RequestError, match=r"value 0 is .*; INT8 takes integers") as caught:
        decode_infer(body.encode())
    assert len(str(caught.value)) < 300
