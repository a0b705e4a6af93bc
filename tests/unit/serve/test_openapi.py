"""The document says what the server does: paths, schemas, answers."""

import json

import jsonschema_rs
import pytest

from fastdlrm.serve.openapi import document
from tests.serving import MODEL, FormulaEngine, running


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("models")) as made:
        yield made


@pytest.fixture(scope="module")
def published(server):
    status, _, body = server.ask("GET", "/openapi.json")
    assert status == 200
    return json.loads(body)


def refs_in(tree):
    if isinstance(tree, dict):
        found = [tree["$ref"]] if isinstance(tree.get("$ref"), str) else []
        return found + [ref for value in tree.values() for ref in refs_in(value)]
    if isinstance(tree, list):
        return [ref for value in tree for ref in refs_in(value)]
    return []


def validator(published, name):
    schema = {"$ref": f"#/components/schemas/{name}", "components": published["components"]}
    return jsonschema_rs.Draft202012Validator(schema)


def test_it_names_every_route_and_no_other(published, server):
    routes = server.server._app._routes
    expected = {(path, route.method) for path, route in routes.fixed.items() if path != "/v2/"}
    for table, head, separator in (
        (routes.of_model, "/v2/models/{model}", "/"),
        (routes.native, "/v1/models/{model}", ":"),
    ):
        for verb, route in table.items():
            tail = separator + verb if verb else ""
            expected.add((head + tail, route.method))
            expected.add((f"{head}/versions/{{version}}{tail}", route.method))
    for verb, route in routes.of_repository.items():
        expected.add((f"/v2/repository/models/{{model}}/{verb}", route.method))
    found = {
        (path, method.upper()) for path, verbs in published["paths"].items() for method in verbs
    }
    assert found == expected


def test_every_reference_leads_somewhere_and_every_schema_is_one(published):
    schemas = published["components"]["schemas"]
    for ref in refs_in(published):
        assert ref.removeprefix("#/components/schemas/") in schemas
    for name in schemas:
        validator(published, name)


def test_examples_are_as_their_schemas_say_and_are_answered(published, server):
    schemas = published["components"]["schemas"]
    for name, path in (
        ("ScoreBody", f"/v1/models/{MODEL}:score"),
        ("RankBody", f"/v1/models/{MODEL}:rank"),
        ("InferRequest", f"/v2/models/{MODEL}/infer"),
    ):
        (example,) = schemas[name]["examples"]
        validator(published, name).validate(example)
        status, answer = server.json("POST", path, example)
        assert status == 200, answer


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "/v2", None),
        ("get", "/v2/health/live", None),
        ("get", "/v2/health/ready", None),
        ("get", "/v2/models/stats", None),
        ("get", "/v2/models/{model}", None),
        ("get", "/v2/models/{model}/ready", None),
        ("get", "/v2/models/{model}/config", None),
        ("get", "/v2/models/{model}/stats", None),
        ("post", "/v2/repository/index", {}),
        ("get", "/v1/models/{model}", None),
        ("get", "/v1/status", None),
        ("post", "/v1/models/{model}:score", {"rows": [{"a": 1, "b": 2}]}),
        ("post", "/v1/models/{model}:rank", {"candidates": {"a": [1], "b": [2]}}),
        ("post", "/v1/models/{model}:rank", {"candidates": []}),
        ("get", "/v2/models/{model}/versions/{version}/config", None),
    ],
)
def test_answers_are_as_the_document_says(published, server, method, path, body):
    filled = path.replace("{model}", MODEL).replace("{version}", "1")
    status, answer = server.json(method.upper(), filled, body)
    response = published["paths"][path][method]["responses"][str(status)]
    schema = response["content"]["application/json"]["schema"]
    validator(published, schema["$ref"].rpartition("/")[2]).validate(answer)


def test_without_a_model_it_has_no_examples():
    schemas = document()["components"]["schemas"]
    assert "examples" not in schemas["ScoreBody"]
    assert (
        "examples" in document(MODEL, FormulaEngine.examples)["components"]["schemas"]["ScoreBody"]
    )


def test_fields_are_described_by_their_docstrings(published):
    schemas = published["components"]["schemas"]
    found = schemas["RankBody"]["properties"]["timeout_ms"]["description"]
    assert found == "Time the answer may take."
    assert "description" in schemas["Traffic"]["properties"]["qps"]
