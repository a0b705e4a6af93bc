"""Bodies of the native routes: which tensors they become, answers by hand, and refusals."""

import json

import numpy as np
import pytest

from fastdlrm.contracts.parameters import Parameters
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.contracts.wire import Outcome
from fastdlrm.errors import RequestError
from fastdlrm.serve.ranking import decode_rank, decode_score, encode_score

CANDIDATES = [
    {"item": "a", "price": 1.5, "tags": ["x", "y"]},
    {"item": None, "price": 2, "tags": []},
    {"item": "é", "price": None, "tags": None},
]


def body_of(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_user_and_candidates_become_columns() -> None:
    query = decode_rank(
        body_of(
            user={"age": 31, "city": "Riga", "seen": [7, 8]},
            candidates=CANDIDATES,
            top_k=2,
            timeout_ms=20,
            priority=1,
            id="q",
        ),
        model_name="m",
        model_version="3",
    )
    infer = query.infer
    assert (infer.model_name, infer.model_version, infer.id) == ("m", "3", "q")
    assert infer.parameters == Parameters(timeout_us=20_000, priority=1, top_k=2)
    found = infer.inputs
    assert list(found) == [
        "age", "city", "seen", "seen.lengths", "item", "price", "tags", "tags.lengths",
    ]  # fmt: skip
    assert (found["age"].datatype, found["age"].shape) == ("INT64", (1,))
    assert found["city"].texts() == ["Riga"]
    assert found["seen"].data.tolist() == [7, 8]
    assert found["seen.lengths"].data.tolist() == [2]
    assert found["item"].texts() == ["a", "", "é"]
    np.testing.assert_array_equal(found["price"].values(), [1.5, 2.0, np.nan])
    assert found["tags"].texts() == ["x", "y"]
    assert found["tags.lengths"].data.tolist() == [2, 0, 0]
    assert found["tags.lengths"].datatype == "INT64"


def test_columns_are_the_same_as_rows() -> None:
    columns = {name: [row[name] for row in CANDIDATES] for name in CANDIDATES[0]}
    by_rows = decode_rank(body_of(candidates=CANDIDATES)).infer
    by_columns = decode_rank(body_of(candidates=columns)).infer
    assert list(by_rows.inputs) == list(by_columns.inputs)
    for name, tensor in by_rows.inputs.items():
        other = by_columns.inputs[name]
        assert tensor[:2] == other[:2]
        assert tensor.data.tobytes() == other.data.tobytes()
    assert by_rows.parameters == Parameters(top_k=3)
    assert decode_rank(body_of(candidates=columns, top_k=9)).infer.parameters.top_k == 3


@pytest.mark.parametrize(
    ("values", "datatype", "found"),
    [
        ([1, 2**62], "INT64", [1, 2**62]),
        ([True, False], "BOOL", [True, False]),
        ([1, 0.5], "FP64", [1.0, 0.5]),
        ([2**62 + 1, None], "BYTES", ["4611686018427387905", ""]),
        ([True, None], "BYTES", ["true", ""]),
        ([None, None], "BYTES", ["", ""]),
        (["7", "8"], "BYTES", ["7", "8"]),
    ],
)
def test_kinds_of_values(values: list[object], datatype: str, found: list[object]) -> None:
    tensor = decode_score(body_of(rows={"c": values})).inputs["c"]
    assert tensor.datatype == datatype
    assert (tensor.texts() if datatype == "BYTES" else tensor.data.tolist()) == found


def outcome(**outputs: WireTensor) -> Outcome:
    return Outcome(model_name="m", model_version="3", id="q", outputs=outputs)


def test_a_ranking_by_hand() -> None:
    answer = outcome(
        item_index=WireTensor.from_list("INT64", (2,), [2, 0]),
        score=WireTensor.from_list("FP32", (2,), [0.75, 0.5]),
    )
    query = decode_rank(body_of(candidates=CANDIDATES, top_k=2))
    assert json.loads(query.encode(answer)) == {
        "model_name": "m",
        "model_version": "3",
        "id": "q",
        "ranking": [{"index": 2, "score": 0.75}, {"index": 0, "score": 0.5}],
    }
    echo = decode_rank(body_of(candidates=CANDIDATES, echo=True))
    ranking = json.loads(echo.encode(answer))["ranking"]
    assert [item["candidate"] for item in ranking] == [CANDIDATES[2], CANDIDATES[0]]


def test_scores_by_hand() -> None:
    infer = decode_score(body_of(rows=[{"a": 1}, {"a": 2}], timeout_ms=0.0001), model_name="m")
    assert infer.parameters == Parameters(timeout_us=1)
    assert infer.model_name == "m"
    answer = outcome(score=WireTensor.from_list("FP32", (2,), [0.5, 0.25]))
    assert json.loads(encode_score(answer)) == {
        "model_name": "m",
        "model_version": "3",
        "id": "q",
        "scores": [0.5, 0.25],
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "request body: Object missing required field `candidates`"),
        ({"candidates": 5}, r"request body: Expected `object \| array`, got `int`"),
        ({"candidates": [1]}, r"Expected `object`, got `int` - at `\$\.candidates\[0\]`"),
        ({"candidates": [{"a": 1}], "topk": 3}, "Object contains unknown field `topk`"),
        ({"candidates": [{"a": 1}], "top_k": 0}, r"Expected `int` >= 1 - at `\$\.top_k`"),
        ({"candidates": [{"a": 1}], "timeout_ms": 0}, "Expected `float` > 0.0"),
        ({"candidates": [{"a": 1}], "timeout_ms": 1e300}, "Expected `float` <= "),
        ({"candidates": [{"a": 1}], "priority": -1}, "Expected `int` >= 0"),
        ({"candidates": []}, "candidates: there are none; send at least one"),
        ({"candidates": [{}, {}]}, "candidates: candidate 0 has no columns; send at least one"),
        (
            {"user": {"a": [1]}, "candidates": {"a.lengths": [1]}},
            "candidates: column 'a.lengths': its name, or its lengths', is that of another column",
        ),
        (
            {"candidates": {"a.lengths": [1], "a": [[1]]}},
            "candidates: column 'a': its name, or its lengths', is that of another column",
        ),
        ({"candidates": {}}, "candidates: there are none"),
        ({"candidates": {"a": []}}, "candidates: there are none"),
        ({"candidates": {"a": 5}}, "candidates: column 'a' is 5; send an array"),
        (
            {"candidates": {"a": [1], "b": [1, 2]}},
            "candidates: column 'b' has 2 values, the others have 1; send one value a row",
        ),
        (
            {"candidates": [{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, {"a": 1}]},
            "candidates: candidate 1 lacks 'b', 'c', 'd' and 1 more, compared to candidate 0",
        ),
        (
            {"candidates": [{"a": 1}, {"a": 1, "b": 2}]},
            "candidates: candidate 1 has 'b' besides, compared to candidate 0",
        ),
        (
            {"user": {"a": 1}, "candidates": [{"a": 1}]},
            "column 'a': both the user and the candidates have it; send it in one",
        ),
        (
            {"candidates": {"a": [1, "x"]}},
            "candidates: column 'a': holds numbers, strings; send strings, numbers",
        ),
        ({"candidates": {"a": [True, 1]}}, "column 'a': holds numbers, true or false"),
        ({"user": {"a": {"b": 1}}, "candidates": {"b": [1]}}, "user: column 'a': holds objects"),
        ({"candidates": {"a": [[[1]]]}}, "column 'a': holds lists within lists"),
        ({"candidates": {"a": [[1], 2]}}, "column 'a': holds lists and plain values"),
        ({"candidates": {"a": [[1, None]]}}, "column 'a': null within a list; leave it out"),
        ({"candidates": {"a": [2**63]}}, "column 'a': a value is outside the range of INT64"),
    ],
)
def test_wrong_bodies_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode_rank(body_of(**fields))


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(RequestError, match="rows: row 1 lacks 'a', compared to row 0"):
        decode_score(body_of(rows=[{"a": 1}, {}]))
    with pytest.raises(RequestError, match="Object contains unknown field `top_k`"):
        decode_score(body_of(rows=[{"a": 1}], top_k=1))
