"""Messages of the Open Inference Protocol over gRPC, and what they are in `contracts`.

The messages are built from `kserve.pb`, which is `kserve.proto` compiled, in a descriptor pool of
their own: clients whose generated modules define the same names live in the same process.
"""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError

from fastdlrm.contracts.parameters import read_parameters
from fastdlrm.contracts.tensors import BYTES, WireTensor, place, quoted, view_tensor
from fastdlrm.contracts.wire import Infer, Outcome, RequestedOutput
from fastdlrm.errors import RequestError

Message = Any
"""A protobuf message; its class is made when the module is loaded."""

SERVICE = "inference.GRPCInferenceService"
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Field of InferTensorContents for each datatype; FP16 and BF16 travel raw only."""


class Method(NamedTuple):
    """A method of the service."""

    name: str
    request: type[Any]
    response: type[Any]
    is_stream: bool


def load_methods() -> dict[str, Method]:
    """The service's methods and their message classes, by name."""
    pool = descriptor_pool.DescriptorPool()
    compiled = (files("fastdlrm.serve") / "kserve.pb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.AddSerializedFile(file.SerializeToString())
    make: Callable[[Any], type[Any]] = message_factory.GetMessageClass
    return {
        method.name: Method(
            method.name, make(method.input_type), make(method.output_type), method.client_streaming
        )
        for method in pool.FindServiceByName(SERVICE).methods
    }


METHODS = load_methods()
InferRequest = METHODS["ModelInfer"].request
InferResponse = METHODS["ModelInfer"].response
StreamResponse = METHODS["ModelStreamInfer"].response


def parse(message_class: type[Any], data: bytes) -> Message:
    """A message from its bytes.

    Raises:
        RequestError: They are not such a message.
    """
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        name = message_class.DESCRIPTOR.full_name
        raise RequestError(f"request: not a message {name} ({error})") from None


def message_of(message_class: type[Any], struct: msgspec.Struct | Mapping[str, Any]) -> Message:
    """A message whose fields are named as those of a struct of `server_info`."""
    return json_format.Parse(msgspec.json.encode(struct), message_class())


def infer_of(message: Message) -> Infer:
    """What a ModelInferRequest asks for; raw tensors are views of its bytes.

    Raises:
        RequestError: A tensor, parameter or output is wrong, or raw and typed contents are mixed.
    """
    return Infer(
        inputs=read_raw(message) if message.raw_input_contents else read_typed(message),
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        parameters=read_parameters(values_of(message.parameters)),
        outputs=read_outputs(message.outputs),
    )


def values_of(parameters: Mapping[str, Message]) -> dict[str, Any]:
    """Parameters of any map of the protocol as Python values; one without a value is None."""
    values = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        values[name] = None if kind is None else getattr(parameter, kind)
    return values


def read_raw(message: Message) -> dict[str, WireTensor]:
    """Inputs whose data lies in raw_input_contents; RequestError where one is wrong."""
    contents = message.raw_input_contents
    if len(contents) != len(message.inputs):
        raise RequestError(
            f"raw_input_contents: {len(contents)} entries for {len(message.inputs)} inputs; "
            "send one for each input, in their order"
        )
    tensors: dict[str, WireTensor] = {}
    for body, data in zip(message.inputs, contents, strict=True):
        where = place_of(body, tensors)
        if body.HasField("contents") and body.contents.ByteSize():
            raise RequestError(
                f"{where}: contents beside raw_input_contents; send all inputs one way"
            )
        tensors[body.name] = view_tensor(
            body.datatype, tuple(body.shape), data, 0, len(data), where
        )
    return tensors


def read_typed(message: Message) -> dict[str, WireTensor]:
    """Inputs whose data lies in their contents; RequestError where one is wrong."""
    tensors: dict[str, WireTensor] = {}
    for body in message.inputs:
        where = place_of(body, tensors)
        field = CONTENTS.get(body.datatype)
        for descriptor, _ in body.contents.ListFields():
            if descriptor.name != field:
                right = f"contents.{field}" if field else "raw_input_contents"
                raise RequestError(
                    f"{where}: {quoted(body.datatype)} data in contents.{descriptor.name}; "
                    f"send it in {right}"
                )
        values = list(getattr(body.contents, field)) if field else []
        tensors[body.name] = WireTensor.from_list(
            body.datatype, tuple(body.shape), values, where=where
        )
    return tensors


def place_of(body: Message, tensors: Mapping[str, WireTensor]) -> str:
    """What messages call an input; RequestError where it comes twice or is elsewhere."""
    where = place("input", body.name)
    if body.name in tensors:
        raise RequestError(f"{where}: sent twice; send each input once")
    if "shared_memory_region" in body.parameters:
        raise RequestError(f"{where}: shared memory is not supported; send the data in the request")
    return where


def read_outputs(bodies: Any) -> tuple[RequestedOutput, ...]:
    """Requested outputs; RequestError for one named twice or in a form that is not supported."""
    outputs: dict[str, RequestedOutput] = {}
    for body in bodies:
        where = place("output", body.name)
        if body.name in outputs:
            raise RequestError(f"{where}: asked for twice; ask for each output once")
        if "shared_memory_region" in body.parameters:
            raise RequestError(
                f"{where}: shared memory is not supported; read the answer from the response"
            )
        if values_of(body.parameters).get("classification"):
            raise RequestError(
                f"{where}: classification is not supported; send the request's parameter top_k"
            )
        outputs[body.name] = RequestedOutput(body.name)
    return tuple(outputs.values())


def response_of(outcome: Outcome, infer: Infer, *, is_raw: bool = True) -> Message:
    """The ModelInferResponse of an answer: the outputs that the request names, or all.

    Args:
        outcome: All outputs.
        infer: The request; its outputs were checked (`Infer.check_outputs`).
        is_raw: Write data into raw_output_contents; else into typed contents, where every
            output's datatype has one.
    """
    names = [output.name for output in infer.outputs] or list(outcome.outputs)
    is_raw = is_raw or any(outcome.outputs[name].datatype not in CONTENTS for name in names)
    response = InferResponse(
        model_name=outcome.model_name, model_version=outcome.model_version, id=outcome.id
    )
    for name in names:
        tensor = outcome.outputs[name]
        output = response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        if is_raw:
            response.raw_output_contents.append(tensor.data.tobytes())
        else:
            values = tensor.items() if tensor.datatype == BYTES else tensor.data.tolist()
            getattr(output.contents, CONTENTS[tensor.datatype]).extend(values)
    return response
