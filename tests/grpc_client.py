"""A client's side of the Open Inference Protocol over gRPC: requests written, answers read."""

from typing import Any

from fastdlrm.contracts.tensors import WireTensor, place
from fastdlrm.contracts.wire import Infer, Outcome
from fastdlrm.errors import RequestError
from fastdlrm.serve.grpc_messages import InferRequest

Message = Any


def request_of(infer: Infer) -> Message:
    """The ModelInferRequest of a client's request, tensors raw."""
    message = InferRequest(
        model_name=infer.model_name, model_version=infer.model_version, id=infer.id
    )
    parameters = infer.parameters
    for name, value in (
        ("timeout", parameters.timeout_us),
        ("priority", parameters.priority),
        ("top_k", parameters.top_k),
    ):
        if value:
            message.parameters[name].int64_param = value
    for name, tensor in infer.inputs.items():
        message.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(tensor.data.tobytes())
    for output in infer.outputs:
        message.outputs.add(name=output.name)
    return message


def outcome_of(message: Message) -> Outcome:
    """What a ModelInferResponse with raw tensors answers.

    Raises:
        RequestError: The server's answer is not as the protocol says.
    """
    contents = message.raw_output_contents
    if len(contents) != len(message.outputs):
        raise RequestError(
            f"raw_output_contents: {len(contents)} entries for {len(message.outputs)} outputs; "
            "the server must send one for each"
        )
    return Outcome(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        outputs={
            body.name: WireTensor.from_buffer(
                body.datatype, body.shape, data, where=place("output", body.name)
            )
            for body, data in zip(message.outputs, contents, strict=True)
        },
    )
