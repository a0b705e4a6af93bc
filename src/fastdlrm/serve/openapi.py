"""The OpenAPI document of the HTTP routes: `GET /openapi.json`, of which `/docs` is made.

Invariant: a test holds its paths against the routes that the server answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastdlrm import __version__
from fastdlrm.serve.openapi_schemas import request_examples, schemas

Json = dict[str, Any]

_MODEL = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "Name of a model.",
    "schema": {"type": "string"},
}
_VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "Number of a version; without one, the current version answers.",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_TIMEOUT = {
    "name": "request-timeout-ms",
    "in": "header",
    "description": "Milliseconds from arrival to the deadline; the body's own may be earlier.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_HEADER_LENGTH = {
    "name": "inference-header-content-length",
    "in": "header",
    "description": "Bytes of JSON before the binary tensors; only with them.",
    "schema": {"type": "integer", "minimum": 0},
}
_PROBLEMS = {
    "400": "The request is wrong; the message says where, what was found and what is allowed.",
    "401": "The bearer token is missing or wrong.",
    "404": "No such model, version or path.",
    "408": "The body did not come in time.",
    "413": "The body is larger than allowed.",
    "415": "The body's Content-Encoding is neither gzip nor deflate.",
    "500": "The server failed on a right request.",
    "503": "Overloaded, not ready or shutting down; Retry-After says when to try again.",
    "504": "The deadline passed before the scores were there.",
}


def document(model: str = "", examples: Sequence[Mapping[str, Any]] = ()) -> Json:
    """The document.

    Args:
        model: Name of a model served, for the examples of paths; empty: none.
        examples: Raw rows of it, for the examples of bodies.
    """
    made = schemas()
    for name, example in request_examples(examples).items():
        made[name]["examples"] = [example]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fastdlrm",
            "version": __version__,
            "description": "Scores of a recommendation model over the Open Inference Protocol "
            "(KServe v2) and over two routes of its own made for ranking.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "ranking", "description": "Raw values as in the log, as JSON."},
            {"name": "inference", "description": "Open Inference Protocol, version 2."},
            {"name": "repository", "description": "Which versions are served."},
            {"name": "operation", "description": "Health, metrics, pages."},
        ],
        "security": [{}, {"bearer": []}],
        "paths": _paths(model),
        "components": {
            "schemas": made,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths(model: str) -> Json:
    named = dict(_MODEL, example=model) if model else _MODEL
    return {
        **_native_paths(named),
        **_inference_paths(named),
        **_repository_paths(named),
        **_operation_paths(),
    }


def _native_paths(model: Json) -> Json:
    paths: Json = {}
    for path, parameters in _versioned("/v1/models/{model}", "", model):
        paths[path] = {
            "get": _operation(
                "ranking", "Example rows of a model", "Examples", parameters=parameters
            )
        }
    for verb, summary, request, answer in (
        ("rank", "Order candidates for one user, best first", "RankBody", "RankAnswer"),
        ("score", "Score rows", "ScoreBody", "ScoreAnswer"),
    ):
        for path, parameters in _versioned("/v1/models/{model}", f":{verb}", model):
            paths[path] = {
                "post": _operation(
                    "ranking",
                    summary,
                    answer=answer,
                    request=request,
                    parameters=[*parameters, _TIMEOUT],
                    problems=("400", "401", "404", "408", "413", "415", "500", "503", "504"),
                )
            }
    return paths


def _inference_paths(model: Json) -> Json:
    paths: Json = {
        "/v2": {"get": _operation("inference", "The server and its extensions", "ServerMetadata")},
        "/v2/models/stats": {
            "get": _operation("inference", "Counts and times of every model", "Statistics")
        },
    }
    reads = (
        ("", "Inputs, outputs and versions of a model", "ModelMetadata", ("404", "503")),
        ("/ready", "Whether a model can be asked", "ModelReady", ()),
        ("/config", "Inputs and outputs in the words of Triton", "ModelConfig", ("404", "503")),
        ("/stats", "Counts and times of a model", "Statistics", ("404",)),
    )
    for suffix, summary, answer, more in reads:
        for path, parameters in _versioned("/v2/models/{model}", suffix, model):
            problems = ("401", *more)
            operation = _operation(
                "inference", summary, answer, parameters=parameters, problems=problems
            )
            if answer == "ModelReady":
                operation["responses"]["503"] = _answer("Not ready, or unknown.", answer)
            paths[path] = {"get": operation}
    for path, parameters in _versioned("/v2/models/{model}", "/infer", model):
        paths[path] = {
            "post": _operation(
                "inference",
                "Score tensors, as JSON or with the binary tensor extension",
                "InferResponse",
                request="InferRequest",
                binary=True,
                parameters=[*parameters, _TIMEOUT, _HEADER_LENGTH],
                problems=("400", "401", "404", "408", "413", "415", "500", "503", "504"),
            )
        }
    return paths


def _repository_paths(model: Json) -> Json:
    where = "/v2/repository/models/{model}"
    return {
        "/v2/repository/index": {
            "post": _operation(
                "repository",
                "All versions and their state",
                "RepositoryIndex",
                request="RepositoryIndexRequest",
                request_required=False,
                problems=("400", "401"),
            )
        },
        f"{where}/load": {
            "post": _operation(
                "repository",
                "Load a model's current version, or the one named; the old one serves until then",
                "Empty",
                request="LoadRequest",
                request_required=False,
                parameters=[model],
                problems=("400", "401", "404", "500", "503"),
            )
        },
        f"{where}/unload": {
            "post": _operation(
                "repository",
                "Stop serving a model, once what it is asked now is answered",
                "Empty",
                parameters=[model],
                problems=("401", "404"),
            )
        },
    }


def _operation_paths() -> Json:
    live = _operation("operation", "Whether the process lives", "Live", problems=())
    ready = _operation("operation", "Whether requests are welcome", "Ready", problems=("503",))
    ready["responses"]["503"] = _answer("Not ready: starting or shutting down.", "Ready")
    texts = (
        ("/metrics", "Metrics in Prometheus' text format", "text/plain"),
        ("/openapi.json", "This document", "application/json"),
        ("/docs", "This document as a page", "text/html"),
        ("/", "Page with live figures and a form", "text/html"),
    )
    paths: Json = {
        "/v2/health/live": {"get": live},
        "/v2/health/ready": {"get": ready},
        "/v1/status": {
            "get": _operation(
                "operation",
                "What the page shows: traffic of the last minutes, models, settings",
                "Status",
                parameters=[
                    {
                        "name": "since",
                        "in": "query",
                        "description": "Only seconds that ended after this time (since 1970).",
                        "schema": {"type": "number"},
                    }
                ],
                problems=("400", "401"),
            )
        },
    }
    for path, summary, kind in texts:
        operation = _operation("operation", summary, "Empty", problems=())
        operation["responses"]["200"] = {
            "description": summary,
            "content": {kind: {"schema": {"type": "string" if "text" in kind else "object"}}},
        }
        paths[path] = {"get": operation}
    return paths


def _versioned(head: str, tail: str, model: Json) -> list[tuple[str, list[Json]]]:
    """A path without and with a version, and their parameters."""
    return [
        (f"{head}{tail}", [model]),
        (f"{head}/versions/{{version}}{tail}", [model, _VERSION]),
    ]


def _operation(
    tag: str,
    summary: str,
    answer: str,
    *,
    request: str = "",
    request_required: bool = True,
    binary: bool = False,
    parameters: list[Json] | None = None,
    problems: tuple[str, ...] = ("401", "404"),
) -> Json:
    responses = {"200": _answer("Done.", answer)}
    responses |= {code: _answer(_PROBLEMS[code], "Error") for code in problems}
    operation: Json = {"tags": [tag], "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if request:
        content: Json = {"application/json": {"schema": _reference(request)}}
        if binary:
            octets: Json = {"application/octet-stream": {"schema": {}}}
            content |= octets
            responses["200"]["content"] |= octets
        operation["requestBody"] = {"required": request_required, "content": content}
    return operation


def _answer(text: str, schema: str) -> Json:
    return {
        "description": text,
        "content": {"application/json": {"schema": _reference(schema)}},
    }


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
