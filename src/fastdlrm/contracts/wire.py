"""Inference requests and their answers on the wire: the Open Inference Protocol (KServe v2).

A body is JSON, or JSON followed by raw tensors (Triton's binary tensor extension): then the header
`Inference-Header-Content-Length` counts the JSON's bytes, each tensor's `binary_data_size` its own,
in the order of the tensors, and together they fill the body exactly. Lengths are never trusted.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np

from fastdlrm.contracts.parameters import (
    NO_PARAMETERS,
    Parameters,
    read_parameters,
    write_parameters,
)
from fastdlrm.contracts.tensors import WireTensor, place, quoted, view_tensor
from fastdlrm.contracts.wire_json import (
    NO_DATA,
    ErrorBody,
    InferBody,
    OutcomeBody,
    OutputBody,
    TensorBody,
    TensorParameters,
    decode_json,
    json_values,
    tensor_of_json,
)
from fastdlrm.errors import RequestError

HEADER_LENGTH = "inference-header-content-length"
"""Header that counts the bytes of JSON before the binary part; absent where there is none."""

INFER_DECODER = msgspec.json.Decoder(InferBody)
OUTCOME_DECODER = msgspec.json.Decoder(OutcomeBody)
ERROR_DECODER = msgspec.json.Decoder(ErrorBody)
ENCODER = msgspec.json.Encoder()


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that a request names."""

    name: str
    binary: bool | None = None
    """Answer it in binary (True) or in JSON (False); None = as `binary_data_output` says."""


class Infer(msgspec.Struct, kw_only=True):
    """One inference request, whatever it came by."""

    inputs: dict[str, WireTensor]
    model_name: str = ""
    model_version: str = ""
    """Empty = the version that the server has in force."""
    id: str = ""
    """The client's own; comes back with the answer."""
    parameters: Parameters = NO_PARAMETERS
    outputs: tuple[RequestedOutput, ...] = ()
    """Empty = all."""

    def check_outputs(self, available: Collection[str]) -> None:
        """Refuse a request for an output that the model has not.

        Raises:
            RequestError: Names it and the available ones.
        """
        for output in self.outputs:
            if output.name not in available:
                raise RequestError(
                    f"output {quoted(output.name)} is not there; available are "
                    f"{', '.join(available)}"
                )


class Outcome(msgspec.Struct, kw_only=True):
    """The answer to one inference request."""

    model_name: str
    outputs: dict[str, WireTensor]
    model_version: str = ""
    id: str = ""


def read_header_length(value: bytes | str | None) -> int | None:
    """The number in the header `Inference-Header-Content-Length`; None where there is none.

    Raises:
        RequestError: The header is not a number of bytes.
    """
    if value is None:
        return None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise RequestError(
            f"Inference-Header-Content-Length: {quoted(text)} is not a number of bytes; "
            "send the length of the JSON before the binary data"
        )
    return int(text)


def decode_infer(
    body: bytes | memoryview,
    header_length: int | None = None,
    *,
    model_name: str = "",
    model_version: str = "",
) -> Infer:
    """Decode the body of an inference request; binary tensors are views of it.

    Args:
        body: All of the body.
        header_length: Bytes of JSON at its start; None where all of it is JSON.
        model_name: From the path; where empty, the body's own counts.
        model_version: As `model_name`.

    Raises:
        RequestError: Anything is not as the protocol says. Elements of binary BYTES tensors are
            not walked (see `tensors`); everything else is checked.
    """
    decoded = decode_json(json_of(body, header_length), INFER_DECODER, "request body")
    parameters = read_parameters(decoded.parameters or {})
    return Infer(
        inputs=read_tensors(decoded.inputs, body, header_length, "input"),
        model_name=model_name or decoded.model_name,
        model_version=model_version or decoded.model_version,
        id=decoded.id,
        parameters=parameters,
        outputs=read_outputs(decoded.outputs) if decoded.outputs else (),
    )


def json_of(body: bytes | memoryview, header_length: int | None) -> bytes | memoryview:
    """The JSON of a body; RequestError where it would pass the body's end."""
    if header_length is None:
        return body
    if not 0 <= header_length <= memoryview(body).nbytes:
        raise RequestError(
            f"Inference-Header-Content-Length: {header_length} bytes of JSON in a body of "
            f"{memoryview(body).nbytes}; send the length of the JSON before the binary data"
        )
    return memoryview(body)[:header_length]


def read_tensors(
    bodies: Sequence[TensorBody], body: bytes | memoryview, start: int | None, what: str
) -> dict[str, WireTensor]:
    """Tensors by name, of JSON values and of the body's binary part.

    Args:
        bodies: What the JSON says of each.
        body: All of the body.
        start: Where its binary part begins; None where it has none.
        what: "input" or "output".

    Raises:
        RequestError: One is wrong, or the binary part is not exactly theirs.
    """
    tensors: dict[str, WireTensor] = {}
    total = memoryview(body).nbytes
    for tensor in bodies:
        name = tensor.name
        where = f"{what} {name!r}" if len(name) <= 60 else place(what, name)  # saves a call
        if name in tensors:
            raise RequestError(f"{where}: sent twice; send each {what} once")
        size = binary_size(tensor, where)
        if size is None:
            tensors[name] = tensor_of_json(tensor, where)
            continue
        if start is None:
            raise RequestError(
                f"{where}: binary_data_size, but the body is all JSON; send the header "
                "Inference-Header-Content-Length"
            )
        if not 0 <= size <= total - start:
            raise RequestError(
                f"{where}: binary_data_size {size}, but {total - start} bytes are left in "
                "the body; send exactly the sizes that the JSON says"
            )
        tensors[name] = view_tensor(tensor.datatype, tensor.shape, body, start, size, where)
        start += size
    if start is not None and start != total:
        raise RequestError(
            f"body: {total - start} bytes are left after the {what}s; "
            "the binary_data_size of all must add up to the body"
        )
    return tensors


def binary_size(body: TensorBody, where: str) -> int | None:
    """Bytes of a tensor in the binary part, None where it is in JSON; refuses both and neither."""
    parameters = body.parameters
    size = None
    if parameters is not None:
        size = parameters.binary_data_size
        if parameters.shared_memory_region is not None:
            raise RequestError(
                f"{where}: shared memory is not supported; send the data in the request"
            )
    if (body.data is NO_DATA) == (size is None):
        found = "no data" if size is None else "both data and binary_data_size"
        raise RequestError(f"{where}: {found}; send either data or binary_data_size")
    return size


def read_outputs(bodies: Sequence[OutputBody]) -> tuple[RequestedOutput, ...]:
    """Requested outputs; RequestError for one named twice or in a form that is not supported."""
    outputs: dict[str, RequestedOutput] = {}
    for body in bodies:
        where = place("output", body.name)
        if body.name in outputs:
            raise RequestError(f"{where}: asked for twice; ask for each output once")
        parameters = body.parameters or TensorParameters()
        if parameters.shared_memory_region is not None:
            raise RequestError(
                f"{where}: shared memory is not supported; read the answer from the response"
            )
        if parameters.classification:
            raise RequestError(
                f"{where}: classification is not supported; send the request's parameter top_k"
            )
        outputs[body.name] = RequestedOutput(body.name, parameters.binary_data)
    return tuple(outputs.values())


def encode_infer(
    infer: Infer, *, binary: bool | Collection[str] = True
) -> tuple[dict[str, str], bytes]:
    """Write a request as a client sends it.

    Args:
        infer: Its model's name and version belong into the path and are not written.
        binary: Inputs whose data goes into the binary part: all, none, or those named.

    Returns:
        Headers (lower-case names) and body.

    Raises:
        RequestError: A value cannot be written in JSON.
    """
    names = infer.inputs if binary is True else binary or ()
    bodies, chunks = write_tensors(infer.inputs, names, "input")
    outputs = [
        OutputBody(
            name=output.name,
            parameters=None
            if output.binary is None
            else TensorParameters(binary_data=output.binary),
        )
        for output in infer.outputs
    ]
    body = InferBody(
        inputs=bodies,
        id=infer.id,
        parameters=write_parameters(infer.parameters) or None,
        outputs=outputs or None,
    )
    headers, all_chunks = assemble(ENCODER.encode(body), chunks)
    return headers, b"".join(all_chunks)


def encode_outcome(
    outcome: Outcome, infer: Infer
) -> tuple[dict[str, str], list[bytes | memoryview]]:
    """Write the answer in the form that the request asks for, output by output.

    Args:
        outcome: All outputs; those the request does not name are left out.
        infer: The request; its outputs were checked (`Infer.check_outputs`).

    Returns:
        Headers (lower-case names) and the body in pieces.

    Raises:
        RequestError: A value cannot be written in JSON.
    """
    default = infer.parameters.binary_data_output
    outputs = outcome.outputs
    names: Collection[str] = outputs if default else ()
    if infer.outputs:
        outputs = {output.name: outcome.outputs[output.name] for output in infer.outputs}
        names = {
            output.name
            for output in infer.outputs
            if (default if output.binary is None else output.binary)
        }
    bodies, chunks = write_tensors(outputs, names, "output")
    body = OutcomeBody(
        model_name=outcome.model_name,
        model_version=outcome.model_version,
        id=outcome.id,
        outputs=bodies,
    )
    return assemble(ENCODER.encode(body), chunks)


def decode_outcome(body: bytes | memoryview, header_length: int | None = None) -> Outcome:
    """Decode the body of an answer; binary tensors are views of it.

    Raises:
        RequestError: The server's answer is not as the protocol says.
    """
    decoded = decode_json(
        json_of(body, header_length),
        OUTCOME_DECODER,
        "response body",
        "is a server of the Open Inference Protocol there?",
    )
    return Outcome(
        model_name=decoded.model_name,
        model_version=decoded.model_version or "",
        id=decoded.id or "",
        outputs=read_tensors(decoded.outputs, body, header_length, "output"),
    )


def encode_error(message: str) -> bytes:
    """Body of an answer that is an error."""
    return ENCODER.encode(ErrorBody(message))


def decode_error(body: bytes | memoryview) -> str:
    """The message in the body of an error; the body itself where it is not of the protocol."""
    try:
        return ERROR_DECODER.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return bytes(body[:2000]).decode("utf-8", "replace")


def write_tensors(
    tensors: Mapping[str, WireTensor], binary: Collection[str], what: str
) -> tuple[list[TensorBody], list[memoryview]]:
    """JSON of tensors, and the data of those that go into the binary part."""
    bodies: list[TensorBody] = []
    chunks: list[memoryview] = []
    for name, tensor in tensors.items():
        parameters = None
        data = NO_DATA
        if name in binary:
            parameters = TensorParameters(binary_data_size=tensor.num_bytes)
            chunks.append(tensor.data.view(np.uint8).data)
        else:
            data = msgspec.Raw(ENCODER.encode(json_values(tensor, place(what, name))))
        bodies.append(
            TensorBody(
                name=name,
                datatype=tensor.datatype,
                shape=tensor.shape,
                parameters=parameters,
                data=data,
            )
        )
    return bodies, chunks


def assemble(
    header: bytes, chunks: Sequence[memoryview]
) -> tuple[dict[str, str], list[bytes | memoryview]]:
    """Headers and pieces of a body of this JSON and this binary part."""
    if not chunks:
        return {"content-type": "application/json"}, [header]
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return headers, [header, *chunks]
