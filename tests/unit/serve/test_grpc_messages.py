"""Messages over gRPC: the compiled protocol, both forms of data, and every refusal."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from fastdlrm.contracts.parameters import Parameters
from fastdlrm.contracts.server_info import ModelMetadata, TensorMetadata
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.contracts.wire import Infer, Outcome, RequestedOutput
from fastdlrm.errors import RequestError
from fastdlrm.serve.grpc_messages import (
    METHODS,
    InferRequest,
    InferResponse,
    infer_of,
    message_of,
    parse,
    response_of,
)
from tests.grpc_client import outcome_of, request_of


def test_the_descriptors_are_what_the_protocol_file_compiles_to(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools compiles the protocol")
    source = Path(str(files("fastdlrm.serve") / "kserve.proto"))
    compiled = tmp_path / "kserve.pb"
    arguments = ["protoc", f"-I{source.parent}", "--include_imports"]
    assert protoc.main([*arguments, f"--descriptor_set_out={compiled}", str(source)]) == 0
    shipped = (files("fastdlrm.serve") / "kserve.pb").read_bytes()
    parsed = descriptor_pb2.FileDescriptorSet.FromString
    assert parsed(compiled.read_bytes()) == parsed(shipped)


def test_messages_live_in_a_pool_of_their_own() -> None:
    pool = InferRequest.DESCRIPTOR.file.pool
    assert pool is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
    assert METHODS["ModelStreamInfer"].is_stream
    assert not METHODS["ModelInfer"].is_stream
    assert len(METHODS) == 12


def test_bytes_of_a_request_by_hand() -> None:
    # field << 3 | wire type, then length: model_name = 1 "m" -> 0a 01 6d; version = 2 "2"; id = 3;
    # inputs = 5 {name = 1 "a", datatype = 2 "INT8", shape = 3 packed [2]}; raw_input_contents = 7
    tensor = b"\x0a\x01a" + b"\x12\x04INT8" + b"\x1a\x01\x02"
    # parameters = 4, an entry of a map: key = 1, value = 2 {int64_param = 2: 3}
    top_k = b"\x0a\x05top_k" + b"\x12\x02\x10\x03"
    message = (
        b"\x0a\x01m\x12\x012\x1a\x01q"
        + b"\x22" + bytes([len(top_k)]) + top_k
        + b"\x2a" + bytes([len(tensor)]) + tensor
        + b"\x32\x07\x0a\x05score"
        + b"\x3a\x02\x05\xff"
    )  # fmt: skip
    infer = infer_of(parse(InferRequest, message))
    assert (infer.model_name, infer.model_version, infer.id) == ("m", "2", "q")
    assert infer.parameters == Parameters(top_k=3)
    assert infer.outputs == (RequestedOutput("score"),)
    assert infer.inputs["a"].values().tolist() == [5, -1]
    assert request_of(infer).SerializeToString(deterministic=True) == message


def typed(datatype: str, shape: list[int], **contents: object) -> object:
    message = InferRequest()
    message.inputs.add(name="I1", datatype=datatype, shape=shape, contents=contents)
    return message


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, float("inf")]),
        ("FP64", "fp64_contents", [0.1, -1e300]),
        ("BYTES", "bytes_contents", [b"a", b"\xff"]),
    ],
)
def test_typed_contents_of_every_datatype(datatype: str, field: str, values: list[object]) -> None:
    tensor = infer_of(typed(datatype, [2], **{field: values})).inputs["I1"]
    assert (tensor.datatype, tensor.shape) == (datatype, (2,))
    assert (tensor.items() if datatype == "BYTES" else tensor.data.tolist()) == values
    answer = response_of(
        Outcome(model_name="m", outputs={"o": tensor}), Infer(inputs={}), is_raw=False
    )
    assert list(getattr(answer.outputs[0].contents, field)) == values
    assert not answer.raw_output_contents


def raw(*contents: bytes, shape: tuple[int, ...] = (2,), num_inputs: int = 1) -> object:
    message = InferRequest(raw_input_contents=contents)
    for index in range(num_inputs):
        message.inputs.add(name=f"I{index + 1}", datatype="INT8", shape=shape)
    return message


def parameter(**value: object) -> object:
    return InferRequest().parameters["x"].__class__(**value)


def changed(message: object, change: object) -> object:
    change(message)  # type: ignore[operator]
    return message


BAD = [
    (raw(b"12", b"34"), "raw_input_contents: 2 entries for 1 inputs; send one for each"),
    (raw(b"12", num_inputs=2), "raw_input_contents: 1 entries for 2 inputs"),
    (raw(b"123"), r"input 'I1': 3 bytes of data, but shape \[2\] of INT8 takes 2"),
    (raw(b"12", shape=(-2,)), r"input 'I1': shape \[-2\] has a negative dimension"),
    (
        changed(raw(b"12"), lambda m: m.inputs[0].contents.int_contents.append(1)),
        "input 'I1': contents beside raw_input_contents; send all inputs one way",
    ),
    (
        changed(raw(b"12", b"34"), lambda m: m.inputs.add(name="I1", datatype="INT8", shape=[2])),
        "input 'I1': sent twice; send each input once",
    ),
    (
        changed(
            raw(b"12"),
            lambda m: (
                m.inputs[0]
                .parameters["shared_memory_region"]
                .MergeFrom(parameter(string_param="r"))
            ),
        ),
        "input 'I1': shared memory is not supported; send the data in the request",
    ),
    (
        typed("INT8", [1], int64_contents=[1]),
        "input 'I1': 'INT8' data in contents.int64_contents; send it in contents.int_contents",
    ),
    (
        typed("FP16", [1], fp32_contents=[1]),
        "input 'I1': 'FP16' data in contents.fp32_contents; send it in raw_input_contents",
    ),
    (typed("FP16", [1]), r"input 'I1': 0 values, but shape \[1\] takes 1"),
    (typed("INT7", [1]), "input 'I1': datatype 'INT7' is not known"),
    (typed("UINT8", [1], uint_contents=[256]), "input 'I1': a value is outside the range of UINT8"),
    (
        changed(raw(b"12"), lambda m: m.parameters["topk"].MergeFrom(parameter(int64_param=1))),
        "parameter 'topk' is not known; allowed are timeout, priority, top_k",
    ),
    (
        changed(raw(b"12"), lambda m: m.parameters["timeout"].MergeFrom(parameter(double_param=1))),
        "parameter 'timeout' is 1.0; allowed is an integer, microseconds",
    ),
    (
        changed(raw(b"12"), lambda m: [m.outputs.add(name="o"), m.outputs.add(name="o")]),
        "output 'o': asked for twice; ask for each output once",
    ),
    (
        changed(
            raw(b"12"),
            lambda m: m.outputs.add(
                name="o", parameters={"classification": parameter(int64_param=3)}
            ),
        ),
        "output 'o': classification is not supported; send the request's parameter top_k",
    ),
    (
        changed(
            raw(b"12"),
            lambda m: m.outputs.add(
                name="o", parameters={"shared_memory_region": parameter(string_param="r")}
            ),
        ),
        "output 'o': shared memory is not supported; read the answer from the response",
    ),
]


@pytest.mark.parametrize(("message", "text"), BAD)
def test_wrong_requests_are_refused(message: object, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        infer_of(message)


def test_parameters_of_every_kind() -> None:
    message = raw(b"12")
    message.parameters["timeout"].uint64_param = 5  # type: ignore[attr-defined]
    message.parameters["priority"].int64_param = 1  # type: ignore[attr-defined]
    message.parameters["binary_data_output"].bool_param = True  # type: ignore[attr-defined]
    message.parameters["sequence_id"].string_param = "s"  # type: ignore[attr-defined]
    message.parameters["top_k"].SetInParent()  # type: ignore[attr-defined]
    assert infer_of(message).parameters == Parameters(
        timeout_us=5, priority=1, binary_data_output=True
    )


def test_damaged_bytes_are_refused() -> None:
    with pytest.raises(RequestError, match=r"request: not a message inference\.ModelInferRequest"):
        parse(InferRequest, b"\x0a\xff")


def test_answers_hold_the_outputs_that_were_asked_for() -> None:
    outcome = Outcome(
        model_name="m",
        model_version="3",
        id="q",
        outputs={
            "item_index": WireTensor.from_list("INT64", (1,), [4]),
            "score": WireTensor.from_list("FP32", (1,), [0.5]),
            "half": WireTensor.from_list("FP16", (1,), [0.5]),
        },
    )
    answer = response_of(outcome, Infer(inputs={}, outputs=(RequestedOutput("score"),)))
    assert [output.name for output in answer.outputs] == ["score"]
    assert answer.raw_output_contents == [b"\x00\x00\x00\x3f"]
    whole = response_of(outcome, Infer(inputs={}), is_raw=False)
    assert len(whole.raw_output_contents) == 3  # FP16 has no typed contents
    found = outcome_of(InferResponse.FromString(whole.SerializeToString()))
    assert (found.model_name, found.model_version, found.id) == ("m", "3", "q")
    for name, tensor in outcome.outputs.items():
        np.testing.assert_array_equal(found.outputs[name].values(), tensor.values())
    del whole.raw_output_contents[:]
    with pytest.raises(RequestError, match="raw_output_contents: 0 entries for 3 outputs; the se"):
        outcome_of(whole)


def test_structs_become_messages() -> None:
    score = TensorMetadata(name="score", datatype="FP32", shape=(-1,))
    metadata = ModelMetadata(
        name="m", versions=("1", "2"), platform="fastdlrm", inputs=(), outputs=(score,)
    )
    message = message_of(METHODS["ModelMetadata"].response, metadata)
    assert list(message.versions) == ["1", "2"]
    assert list(message.outputs[0].shape) == [-1]
