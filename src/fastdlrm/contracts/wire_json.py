"""JSON bodies of inference requests and responses, and tensors' data inside them.

In JSON a missing number (NaN) and a missing text are null, both ways; infinities cannot be written.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import msgspec
import numpy as np

from fastdlrm.contracts.tensors import BYTES, DATATYPES, WireTensor, shape_text
from fastdlrm.errors import RequestError

T = TypeVar("T")
NO_DATA = msgspec.Raw(b"")


class TensorParameters(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Parameters of one input or output; hints of other servers' codecs are ignored."""

    binary_data_size: int | None = None
    """Bytes of the tensor in the binary part of the body, instead of `data`."""
    binary_data: bool | None = None
    """Of a requested output: answer in binary or in JSON."""
    shared_memory_region: str | None = None
    """Refused: the server shares no memory with clients."""
    classification: int | None = None
    """Refused: `top_k` ranks rows, there are no classes."""


class TensorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One tensor of a request or a response."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: TensorParameters | None = None
    data: msgspec.Raw = NO_DATA
    """Flat or nested as the shape, row-major; absent where the tensor is in the binary part."""


class OutputBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An output that a request asks for."""

    name: str
    parameters: TensorParameters | None = None


class InferBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Body of POST /v2/models/{model}/infer."""

    inputs: list[TensorBody]
    id: str = ""
    model_name: str = ""
    model_version: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[OutputBody] | None = None


class OutcomeBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Body of the answer."""

    model_name: str
    model_version: str | None = None
    """Null is allowed for what is optional: servers that have none write it so."""
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[TensorBody]


class ErrorBody(msgspec.Struct):
    """Body of every answer that is an error."""

    error: str


def decode_json(
    body: bytes | memoryview | msgspec.Raw,
    decoder: msgspec.json.Decoder[T],
    where: str,
    advice: str = "see GET /openapi.json for its form",
) -> T:
    """Decode what came over the wire.

    Args:
        body: The JSON.
        decoder: Of the type it must have.
        where: What messages call it.
        advice: What messages say there is to do.

    Raises:
        RequestError: It is no JSON, or not of the decoder's type; the message says where.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = str(error)  # names what it found, however long that is
        text = text if len(text) <= 300 else text[:300] + "..."
        raise RequestError(f"{where}: {text}; {advice}") from None
    except RecursionError:
        raise RequestError(f"{where}: JSON is nested too deeply; {advice}") from None


ANY_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def tensor_of_json(body: TensorBody, where: str) -> WireTensor:
    """The tensor whose values are written in JSON.

    Raises:
        RequestError: The values are not of the datatype, or are not as the shape says.
    """
    data = decode_json(body.data, ANY_DECODER, f"{where}: data")
    if type(data) is not list:
        raise RequestError(f"{where}: data is not an array; send the values in an array")
    return WireTensor.from_list(
        body.datatype, body.shape, flatten(data, body.shape, where), where=where
    )


def flatten(data: list[Any], shape: Sequence[int], where: str) -> list[Any]:
    """Values nested as the shape, flat; a flat array is returned as it is.

    Raises:
        RequestError: An array inside has another length than its dimension.
    """
    if not data or type(data[0]) is not list or not shape:
        return data
    if len(data) != shape[0]:
        raise uneven(len(data), 0, shape, where)
    for axis, size in enumerate(shape[1:], start=1):
        for part in data:
            if type(part) is not list or len(part) != size:
                found = len(part) if type(part) is list else None
                raise uneven(found, axis, shape, where)
        data = list(chain.from_iterable(data))
    return data


def uneven(found: int | None, axis: int, shape: Sequence[int], where: str) -> RequestError:
    """The error of nested data that does not follow its shape."""
    what = "a value that is no array" if found is None else f"an array of {found}"
    return RequestError(
        f"{where}: data nested {axis + 1} deep holds {what}, but shape {shape_text(shape)} says "
        f"{shape[axis]}; nest the data as its shape, or send it flat"
    )


def json_values(tensor: WireTensor, where: str) -> list[Any]:
    """The values of a tensor for JSON, flat; NaN as None.

    Raises:
        RequestError: A text that is not UTF-8, or an infinity: neither can be written in JSON.
    """
    if tensor.datatype == BYTES:
        return tensor.texts(where=where)
    numbers = tensor.values().reshape(-1)
    if DATATYPES[tensor.datatype].kind == "float" and np.isinf(numbers).any():
        raise RequestError(f"{where}: an infinity cannot be written in JSON; ask for binary data")
    return numbers.tolist()
