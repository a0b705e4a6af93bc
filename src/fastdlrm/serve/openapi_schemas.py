"""JSON schemas of the HTTP routes' bodies; those of answers are made from the types themselves."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import msgspec.inspect

from fastdlrm.contracts import server_info
from fastdlrm.contracts.tensors import DATATYPES
from fastdlrm.contracts.wire import encode_infer
from fastdlrm.contracts.wire_json import ErrorBody
from fastdlrm.serve.ranking import (
    RankAnswer,
    RankBody,
    ScoreAnswer,
    ScoreBody,
    decode_score,
)
from fastdlrm.serve.status import Status

Json = dict[str, Any]

_ANSWERS = (
    server_info.ServerMetadata,
    server_info.Live,
    server_info.Ready,
    server_info.ModelReady,
    server_info.ModelMetadata,
    server_info.ModelConfig,
    server_info.Statistics,
    server_info.RepositoryEntry,
    Status,
    RankBody,
    RankAnswer,
    ScoreBody,
    ScoreAnswer,
)
_NUM_CANDIDATES = 3


def schemas() -> Json:
    """All schemas by name."""
    _, components = msgspec.json.schema_components(
        _ANSWERS, ref_template="#/components/schemas/{name}"
    )
    for kind in _struct_types(_ANSWERS):
        properties = components[kind.__name__]["properties"]
        for name, text in field_texts(kind).items():
            properties[name].setdefault("description", text)
    return {
        **components,
        "Error": _error(),
        "Empty": {"type": "object", "additionalProperties": False},
        "Examples": _object(
            ("model_name", "model_version", "examples"),
            model_name={"type": "string"},
            model_version={"type": "string"},
            examples={
                "type": "array",
                "items": {"type": "object"},
                "description": "Raw rows, a value a column, as `:score` takes them.",
            },
        ),
        "RepositoryIndex": {"type": "array", "items": _reference("RepositoryEntry")},
        "RepositoryIndexRequest": _object(
            ready=_with("boolean", "Only what is ready.", default=False)
        ),
        "LoadRequest": _object(
            parameters=_object(version=_with("string", "Number of the version to serve."))
            | {"additionalProperties": False}
        ),
        **_tensor_schemas(),
    }


def field_texts(kind: type[msgspec.Struct]) -> dict[str, str]:
    """What stands in the source below each field of a struct, in one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                texts[name] = " ".join(text.split())
    return texts


def _struct_types(kinds: Sequence[type[msgspec.Struct]]) -> list[type[msgspec.Struct]]:
    """These structs and all that their fields hold."""
    found = {
        part.cls for info in msgspec.inspect.multi_type_info(kinds) for part in _structs_in(info)
    }
    return sorted(found, key=lambda kind: kind.__name__)


def _structs_in(info: msgspec.inspect.Type) -> Iterator[msgspec.inspect.StructType]:
    match info:
        case msgspec.inspect.StructType(fields=fields):
            yield info
            inner = [field.type for field in fields]
        case msgspec.inspect.UnionType(types=types):
            inner = list(types)
        case (
            msgspec.inspect.VarTupleType(item_type=item) | msgspec.inspect.ListType(item_type=item)
        ):
            inner = [item]
        case msgspec.inspect.DictType(value_type=value):
            inner = [value]
        case _:
            inner = []
    for part in inner:
        yield from _structs_in(part)


def request_examples(rows: Sequence[Mapping[str, Any]]) -> dict[str, Json]:
    """Bodies that a model answers, by the name of their schema.

    Args:
        rows: Raw rows of it: a value a column; none: no examples.
    """
    if not rows:
        return {}
    score = {"rows": list(rows[:1])}
    columns = list(rows[0])
    shared, own = columns[: len(columns) // 2], columns[len(columns) // 2 :]
    rank = {
        "user": {name: rows[0][name] for name in shared},
        "candidates": [{name: row[name] for name in own} for row in rows[:_NUM_CANDIDATES]],
        "top_k": 2,
    }
    _, infer = encode_infer(decode_score(msgspec.json.encode(score)), binary=False)
    return {"ScoreBody": score, "RankBody": rank, "InferRequest": msgspec.json.decode(infer)}


def _tensor_schemas() -> Json:
    datatype = {"type": "string", "enum": list(DATATYPES)}
    data: Json = {
        "type": "array",
        "description": "Row-major, nested as the shape or flat. A missing number or text is null.",
        "items": {},
    }
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    size = _with("integer", "Bytes in the binary part, instead of `data`.", minimum=0)
    tensor = _object(
        ("name", "datatype", "shape"),
        name={"type": "string"},
        datatype=datatype,
        shape=shape,
        parameters=_object(binary_data_size=size),
        data=data,
    )
    wanted = _object(
        ("name",),
        name={"type": "string"},
        parameters=_object(binary_data=_with("boolean", "Answer this output in binary.")),
    )
    request = _object(
        ("inputs",),
        id=_with("string", "Comes back with the answer."),
        parameters=_parameters(),
        inputs={
            "type": "array",
            "minItems": 1,
            "description": "One tensor a raw column, shape [N], or [1] for the same value in all "
            "rows; or the tensors `dense` and `ids` as `fastdlrm prepare` writes them.",
            "items": tensor,
        },
        outputs={"type": "array", "items": wanted},
    )
    answer = _object(
        ("model_name", "outputs"),
        model_name={"type": "string"},
        model_version={"type": "string"},
        id={"type": "string"},
        outputs={
            "type": "array",
            "description": "`score` FP32 [N]; with `top_k` `item_index` INT64 [k] and `score` [k].",
            "items": tensor,
        },
    )
    return {"InferRequest": request, "InferResponse": answer}


def _parameters() -> Json:
    return _object(
        timeout=_with("integer", "Deadline, microseconds from arrival; 0: none.", minimum=0),
        priority=_with("integer", "1 is the highest; 0: the default.", minimum=0),
        top_k=_with("integer", "Answer this many of the best rows, best first.", minimum=1),
        binary_data_output=_with("boolean", "Answer all outputs in binary."),
    )


def _error() -> Json:
    _, components = msgspec.json.schema_components((ErrorBody,))
    schema: Json = components["ErrorBody"]
    return schema | {
        "title": "Error",
        "description": "Where, what was found, what is allowed, what to do.",
    }


def _object(required: tuple[str, ...] = (), /, **properties: Json) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _with(kind: str, description: str, **more: Any) -> Json:
    return {"type": kind, "description": description, **more}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
