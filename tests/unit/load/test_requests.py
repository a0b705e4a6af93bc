"""Requests made of example rows: what a server decodes from them."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.server_info import ModelMetadata, TensorMetadata
from fastdlrm.contracts.wire import decode_infer
from fastdlrm.errors import DataError, LoadError
from fastdlrm.load.plan import Plan
from fastdlrm.load.requests import MAX_VARIANTS, RequestFile, RequestMaker
from fastdlrm.load.rows import read_rows

ROWS = pa.table(
    {
        "age": ["31", None, "18"],
        "city": ["Riga", "Köln", None],
        "clicks": [4, 5, 6],
        "tags": [["x", "yy"], [], None],
    }
)


def metadata_of(**inputs):
    entries = [
        TensorMetadata(name=name, datatype=datatype, shape=shape)
        for name, (datatype, *shape) in inputs.items()
    ]
    return ModelMetadata(name="m", versions=("1",), platform="p", inputs=entries, outputs=())


METADATA = metadata_of(
    age=("FP64", -1), city=("BYTES", -1), clicks=("INT64", -1), tags=("BYTES", -1)
)


def plan_of(**changes):
    return Plan(**{"url": "http://h:81/pre/", "model": "a b", "rate": 1.0, **changes})


def inputs_of(body):
    length = body.headers.get("inference-header-content-length")
    infer = decode_infer(body.content, None if length is None else int(length))
    return infer, infer.inputs


@pytest.mark.parametrize("form", ["binary", "json"])
def test_a_body_holds_a_window_of_the_rows(form):
    """Five rows from row 1 on: 1, 2, 0, 1, 2."""
    maker = RequestMaker(plan_of(body=form, top_k=2, timeout_ms=1.5), ROWS, METADATA)
    infer, inputs = inputs_of(maker.body(5, 1))
    ages = inputs["age"].values().tolist()
    assert [None if math.isnan(age) else age for age in ages] == [None, 18, 31, None, 18]
    assert inputs["city"].texts() == ["Köln", "", "Riga", "Köln", ""]
    assert inputs["clicks"].values().tolist() == [5, 6, 4, 5, 6]
    assert inputs["tags"].texts() == ["x", "yy"]
    assert inputs["tags.lengths"].values().tolist() == [0, 0, 2, 0, 0]
    assert (infer.parameters.top_k, infer.parameters.timeout_us) == (2, 1500)
    assert infer.parameters.binary_data_output == (form == "binary")


def test_the_users_columns_are_sent_once():
    maker = RequestMaker(plan_of(user_columns=("age", "tags")), ROWS, METADATA)
    _, inputs = inputs_of(maker.body(3, 0))
    assert inputs["age"].values().tolist() == [31]
    assert inputs["city"].shape == (3,)
    assert inputs["tags"].texts() == ["x", "yy"]
    assert inputs["tags.lengths"].values().tolist() == [2]


def test_a_rank_body():
    plan = plan_of(body="rank", user_columns=("age",), top_k=2, timeout_ms=7.0, version="3")
    body = RequestMaker(plan, ROWS.drop_columns("tags"), METADATA).body(2, 2)
    assert body.path == "/pre/v1/models/a%20b/versions/3:rank"
    assert json.loads(body.content) == {
        "user": {"age": "18"},
        "candidates": {"city": [None, "Riga"], "clicks": [6, 4]},
        "top_k": 2,
        "timeout_ms": 7.0,
    }


def test_a_request_has_a_head():
    plan = plan_of(headers=(("authorization", "Bearer t"),))
    request = RequestMaker(plan, ROWS, METADATA).request(2, 0)
    head, _, content = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /pre/v2/models/a%20b/infer HTTP/1.1"
    assert {"host: h:81", f"content-length: {len(content)}", "authorization: Bearer t"} <= set(
        lines
    )


def test_columns_take_the_types_of_the_metadata():
    rows = pa.table(
        {
            "half": ["1.5", "2"],
            "yes": [1, 0],
            "wide": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
            "list": [[1.0, 2.0], [3.0, 4.0]],
            "single": [7, 8],
            "word": ["a", "b"],
            "gap": [None, 3],
            "brain": [1.0, 3.0],
            "bool": [True, False],
        }
    )
    metadata = metadata_of(
        half=("FP16", -1),
        yes=("BOOL", -1),
        wide=("INT32", -1, 2),
        list=("FP32", -1, 2),
        single=("INT64", -1, 1),
        word=("FP32", -1),
        gap=("INT64", -1),
        brain=("BF16", -1),
        bool=("BYTES", -1),
    )
    _, inputs = inputs_of(RequestMaker(plan_of(), rows, metadata).body(2, 0))
    found = {name: (tensor.datatype, tensor.shape) for name, tensor in inputs.items()}
    assert found["half"] == ("FP16", (2,))
    assert found["yes"] == ("BOOL", (2,))
    assert found["wide"] == ("INT32", (2, 2))
    assert found["list"] == ("FP32", (2, 2))
    assert found["single"] == ("INT64", (2, 1))
    # What cannot be of the metadata's type goes as text, and the server says what it thinks of it.
    assert found["word"] == found["gap"] == ("BYTES", (2,))
    assert inputs["gap"].texts() == ["", "3"]
    assert inputs["brain"].values().tolist() == [1, 3]
    assert inputs["bool"].texts() == ["true", "false"]
    assert inputs["list"].values().tolist() == [[1, 2], [3, 4]]


def test_without_metadata_columns_keep_their_types():
    rows = pa.table({"i": [1, 2], "f": [0.5, None], "b": [True, False], "s": ["x", None]})
    maker = RequestMaker(plan_of(), rows, metadata_of())
    _, inputs = inputs_of(maker.body(2, 0))
    found = {name: tensor.datatype for name, tensor in inputs.items()}
    assert found == {"i": "INT64", "f": "FP64", "b": "BOOL", "s": "BYTES"}
    assert maker.unused == []


def test_columns_the_model_does_not_take_are_left_out():
    maker = RequestMaker(plan_of(), ROWS, metadata_of(city=("BYTES", -1)))
    assert maker.unused == ["age", "clicks", "tags"]
    assert list(inputs_of(maker.body(1, 0))[1]) == ["city"]


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(DataError, match=r"rows have the columns age, .* but model 'm' takes other"):
        RequestMaker(plan_of(), ROWS, metadata_of(other=("BYTES", -1)))
    with pytest.raises(DataError, match="user column 'x' is not there; rows have age, city"):
        RequestMaker(plan_of(user_columns=("x",)), ROWS, METADATA)
    with pytest.raises(DataError, match="column 'clicks': cannot be sent as INT8"):
        RequestMaker(plan_of(), pa.table({"clicks": [300]}), metadata_of(clicks=("INT8", -1)))


def test_drawn_rows_are_of_the_metadatas_types():
    metadata = metadata_of(
        dense=("FP32", -1, 13), ids=("INT64", -1), text=("BYTES", -1), flag=("BOOL", -1)
    )
    plan = plan_of(rows="random")
    _, inputs = inputs_of(RequestMaker(plan, read_rows(plan, metadata), metadata).body(5, 7))
    assert (inputs["dense"].datatype, inputs["dense"].shape) == ("FP32", (5, 13))
    assert ((inputs["dense"].values() >= 0) & (inputs["dense"].values() < 1)).all()
    assert set(inputs["ids"].values().tolist()) <= {0, 1}
    assert set(inputs["text"].texts()) <= {"0", "1"}
    with pytest.raises(LoadError, match="input 'x': datatype 'STRANGE' cannot be drawn"):
        read_rows(plan, metadata_of(x=("STRANGE", -1)))


def test_requests_are_made_once_for_a_size_and_window():
    maker = RequestMaker(plan_of(), ROWS, METADATA)
    sizes = np.array([3] * 100 + [8] * 2)
    with RequestFile(maker) as requests:
        starts, stops = requests.places(sizes, 5)
        content = Path(requests.path).read_bytes()
        made = {(int(a), int(b)) for a, b in zip(starts, stops, strict=True)}
        assert 10 < len(set(starts[:100].tolist())) <= MAX_VARIANTS
        assert len(set(starts[100:].tolist())) <= 2
        for start, stop in made:
            request = content[start:stop]
            assert request.startswith(b"POST /pre/v2/models/a%20b/infer")
            head, _, body = request.partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head
        assert sum(stop - start for start, stop in made) <= len(content)
        again = requests.places(sizes, 5)
        assert len(content) == max(again[1])
    assert not Path(requests.path).exists()
