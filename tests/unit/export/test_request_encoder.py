"""Requests by hand: ids worked out from the model's vocabularies, both forms, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdlrm.contracts.hashing import bucket, text_key
from fastdlrm.contracts.schema import SparseFeature
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import RequestError
from fastdlrm.export import request_encoder
from fastdlrm.export.request_encoder import RequestEncoder
from tests.request_model import DENSE, SPARSE, RequestModel


def make(
    folder: Path, *names: str, missing: tuple[str, ...] = ("",), trims: bool = False
) -> RequestEncoder:
    folder.mkdir(exist_ok=True)
    features = tuple(f for f in (*DENSE, *SPARSE) if f.name in names)
    model = RequestModel(folder, features, missing)
    return RequestEncoder(model.schema, model.encoding, missing, model.index, trims=trims)


def texts(*values: str | bytes | None) -> WireTensor:
    return WireTensor.from_texts(values)


def array(values: Any, dtype: str = "<f8") -> WireTensor:
    return WireTensor.from_array(np.array(values, dtype=dtype))


def ids_of(encoder: RequestEncoder, **inputs: WireTensor) -> list[int]:
    found = encoder.encode(inputs, 0, encoder.num_rows(inputs))
    return found.ids.tolist()


def test_ids_by_hand(tmp_path: Path) -> None:
    # C1: 0, 1, ab, deadbeef, ff..f are rows 2 to 6; unseen 0, missing 1
    assert ids_of(make(tmp_path, "C1"), C1=texts("AB", "0", "deadbeef", "2", "")) == [4, 2, 5, 0, 1]
    # item: 0, 1, 7, -3, -2**63
    expected = [2, 5, 6, 0]
    item = make(tmp_path, "item")
    assert ids_of(item, item=texts("+0", "-3", "-9223372036854775808", "5")) == expected
    assert ids_of(item, item=array([0, -3, -(2**63), 5], "<i8")) == expected
    assert ids_of(item, item=array([7, np.nan])) == [4, 1]
    # place: the value is the row
    assert ids_of(make(tmp_path, "place"), place=texts("0", "7")) == [0, 7]
    # word: "naïve" is the third word
    assert ids_of(make(tmp_path, "word"), word=texts("naïve", "tea", "NA", "")) == [4, 2, 7, 1]
    user = make(tmp_path, "user")
    assert ids_of(user, user=texts("5", None)) == [2 + bucket(5, 298), 1]
    query = make(tmp_path, "query")
    assert ids_of(query, query=texts("x y")) == [2 + bucket(text_key("x y"), 3)]
    # level: edges 0, 1.5 and 100, hashed to 2 buckets
    level = make(tmp_path, "level")
    expected = [2 + bucket(at, 2) for at in (0, 1, 2, 3)] + [1]
    assert ids_of(level, level=texts("-1", "0", "1.5", "1e2", "nan")) == expected
    assert ids_of(level, level=array([-1, 0, 1.5, 100, np.nan])) == expected


def test_white_space_around_a_text_is_trimmed_where_the_log_is_text(tmp_path: Path) -> None:
    """A text file's reader trims; a typed file's value is what it is."""
    sent = texts(" tea", "tea\t", "\r\n", "tea", " naïve ", "NA ")
    trimming = make(tmp_path / "a", "word", missing=("", "NA"), trims=True)
    assert ids_of(trimming, word=sent) == [2, 2, 1, 2, 4, 1]
    assert ids_of(make(tmp_path / "b", "word"), word=sent)[:3] == [0, 0, 0]
    with_empty = make(tmp_path / "e", "word", missing=("NA",), trims=True)
    assert ids_of(with_empty, word=texts(" ", "", "tea")) == [6, 6, 2]
    assert ids_of(with_empty, word=texts("")) == [6]
    item = make(tmp_path / "c", "item", trims=True)
    assert ids_of(item, item=texts(" -3", "7 ", " ", "1")) == [5, 4, 1, 3]
    price = make(tmp_path / "d", *(f.name for f in DENSE), trims=True)
    columns = {f.column: texts(" 2.5 ", "2.5") for f in DENSE}
    first, second = price.encode(columns, 0, 2).dense
    assert first.tolist() == second.tolist()


def test_an_empty_text_is_a_word_where_missing_values_are_written_otherwise(tmp_path: Path) -> None:
    encoder = make(tmp_path, "word", "C1", missing=("NA",))
    # word: rows 6 and 1; C1: an empty text and NA are missing
    assert ids_of(encoder, word=texts("", "NA"), C1=texts("", "NA")) == [1, 1, 6, 1]


def test_dense_numbers_are_filled_and_transformed(tmp_path: Path) -> None:
    encoder = make(tmp_path, "price", "count", "age")
    inputs = {
        "price": texts("", "2.5"),
        "count": texts("", "-4"),
        "age": array([np.nan, 51.8]),
    }
    found = encoder.encode(inputs, 0, 2).dense
    # price: fill 0.25; count: log1p(3), log1p(max(-4, 0)); age: (40 - 38.7) / 13.1, 13.1 / 13.1
    expected = [[0.25, np.log(4), 1.3 / 13.1], [2.5, 0, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rows_of_several_requests_lie_in_one_buffer(tmp_path: Path) -> None:
    encoder = make(tmp_path, "price", "C1", "place")
    one = {"price": array([1.0, 2.0]), "C1": texts("0", "1"), "place": texts("4")}
    two = {"price": array([3.0]), "C1": texts(""), "place": texts("5")}
    parts = [encoder.encode(one, 0, 2), encoder.encode(two, 0, 1)]
    batch = encoder.join(parts)
    assert batch.buffer is not None
    assert batch.dense.tolist() == [[1], [2], [3]]
    assert batch.sparse.ids.view(2, 3).tolist() == [[2, 3, 1], [4, 4, 5]]
    assert batch.labels.isnan().all()
    alone = encoder.join(parts[:1])
    assert alone.sparse.ids.data_ptr() == parts[0].ids.ctypes.data


def test_encoded_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    encoder = make(tmp_path, "price", "C1", "place")
    ids = np.array([[2, 7], [3, 0], [6, 1]])
    for dtype in ("<i4", "<i8"):
        inputs = {"dense": array([[0.5]], "<f4"), "ids": array(ids, dtype)}
        assert encoder.num_rows(inputs) == 3
        part = encoder.encode(inputs, 1, 3)
        assert part.ids.tolist() == [3, 6, 0, 1]
        assert part.dense.tolist() == [[0.5], [0.5]]
    inputs = {"dense": array([[1], [2]], "<f4"), "ids": array([[2, 7]], "<i4")}
    assert encoder.encode(inputs, 0, 2).ids.tolist() == [2, 2, 7, 7]
    inputs["dense"].data[0] = 9
    assert encoder.encode(inputs, 0, 1).dense.tolist() == [[9]]


def test_what_is_encoded_does_not_lie_in_the_request(tmp_path: Path) -> None:
    encoder = make(tmp_path, "price", "place")
    inputs = {"dense": array([[1], [2]], "<f4"), "ids": array([[3], [4]], "<i4")}
    part = encoder.encode(inputs, 0, 2)
    for tensor in inputs.values():
        tensor.data[:] = 0
    assert (part.dense.tolist(), part.ids.tolist()) == ([[1], [2]], [3, 4])


def jagged(**changed: WireTensor) -> dict[str, WireTensor]:
    """Three rows of features place, seen (weighted) and tags."""
    lengths = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 1]])
    ids = [7, 0, 1, 5, 6, 2, 2, 3, 4, 5]
    weights = [1, 1, 1, 0.5, 0.25, 2, 1, 1, 1, 1]
    return {
        "lengths": array(lengths, "<i4"),
        "ids": array(ids, "<i4"),
        "weights": array(weights, "<f4"),
        **changed,
    }


def test_encoded_bags_are_cut_by_rows(tmp_path: Path) -> None:
    encoder = make(tmp_path, "place", "seen", "tags")
    inputs = jagged()
    assert encoder.num_rows(inputs) == 3
    part = encoder.encode(inputs, 1, 3)
    assert part.ids.tolist() == [0, 1, 2, 2, 3, 4, 5]
    assert part.lengths is not None
    assert part.lengths.tolist() == [1, 1, 0, 1, 3, 1]
    assert part.weights is not None
    assert part.weights.tolist() == [1, 1, 2, 1, 1, 1, 1]
    joined = encoder.join([encoder.encode(inputs, 0, 1), part])
    assert torch.equal(joined.sparse.ids, encoder.encode(inputs, 0, 3).batch().sparse.ids)


def test_an_encoded_bag_may_be_that_of_all_rows(tmp_path: Path) -> None:
    encoder = make(tmp_path, "price", "seen")
    inputs = {
        "dense": array([[1], [2]], "<f4"),
        "lengths": array([[2]], "<i8"),
        "ids": array([3, 4], "<i8"),
        "weights": array([1, 2], "<f4"),
    }
    assert encoder.num_rows(inputs) == 2
    part = encoder.encode(inputs, 0, 2)
    assert part.ids.tolist() == [3, 4, 3, 4]
    assert part.lengths is not None
    assert part.lengths.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"dense": array([[1], [np.inf]], "<f4"), "ids": array([[2, 7]], "<i4")},
            r"row 1: input 'dense': inf for feature 'price'; encoded numbers are finite",
        ),
        (
            {"dense": array([[1], [2]], "<f4"), "ids": array([[2, 7], [3, 8]], "<i4")},
            r"row 1: input 'ids': id 8 for feature 'place'; 0 to 7 is allowed",
        ),
        (
            {"dense": array([[1]], "<f4"), "ids": array([[-1, 7]], "<i8")},
            r"row 0: input 'ids': id -1 for feature 'C1'; 0 to 6 is allowed",
        ),
        (
            {"dense": array([[1]], "<f4"), "ids": array([[2**32 + 2, 7]], "<i8")},
            r"id 4294967298 for feature 'C1'",
        ),
        (
            {"price": texts("1", "x"), "C1": texts("0"), "place": texts("1")},
            r"row 1: column 'price': 'x' is not a number .*; correct it",
        ),
        (
            {"price": texts("1", "1e400"), "C1": texts("0"), "place": texts("1")},
            r"row 1: column 'price': '1e400' is infinite or too large",
        ),
        (
            {"price": texts("1"), "C1": texts("0", "xyz"), "place": texts("1")},
            r"row 1: column 'C1': 'xyz' is not hexadecimal \(digits 0-9 and a-f\); correct it",
        ),
        (
            {"price": texts("1"), "C1": texts("0"), "place": texts("1", "2", "8", "9")},
            r"row 2: sparse feature 'place': no row for 1 of 1 values, the first 8; encoding "
            r"'identity' takes 0 to 7",
        ),
        (
            {"price": texts("1"), "C1": texts("0"), "place": texts("1", "")},
            r"row 1: sparse feature 'place': no row .* the first a missing one",
        ),
        (
            {"price": array([2**53 + 1], "<i8"), "C1": texts("0"), "place": texts("1")},
            r"row 0: column 'price': '9007199254740993' is not a number",
        ),
        (
            {"price": array([1e300]), "C1": texts("0"), "place": texts("1")},
            r"row 0: column 'price': '1e\+300' is infinite or too large",
        ),
        (
            {"price": array([1]), "C1": texts("0", b"\xff"), "place": texts("1")},
            r"input 'C1': an element is not UTF-8 text",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, inputs: dict[str, WireTensor], message: str) -> None:
    encoder = make(tmp_path, "price", "C1", "place")
    num_rows = encoder.num_rows(inputs)
    with pytest.raises(RequestError, match=message):
        encoder.encode(inputs, 0, num_rows)


def test_rows_are_those_of_the_whole_request(tmp_path: Path) -> None:
    encoder = make(tmp_path, "C1", "place")
    inputs = {"C1": texts("0", "1", "zz", "2"), "place": texts("1", "2", "3", "9")}
    with pytest.raises(RequestError, match="row 2: column 'C1'"):
        encoder.encode(inputs, 1, 4)
    with pytest.raises(RequestError, match="row 3: sparse feature 'place'"):
        encoder.encode(inputs, 3, 4)
    assert encoder.encode(inputs, 0, 2).ids.tolist() == [2, 3, 1, 2]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            jagged(ids=array([7, 0, 1, 5, 6, 7, 2, 3, 4, 5], "<i4")),
            r"row 2: input 'ids': id 7 for feature 'seen'; 0 to 6 is allowed",
        ),
        (
            jagged(weights=array([1, 1, 1, 0.5, np.nan, 2, 1, 1, 1, 1], "<f4")),
            r"row 0: input 'weights': nan for feature 'seen'; weights are finite",
        ),
    ],
)
def test_what_is_wrong_with_encoded_bags_is_told(
    tmp_path: Path, inputs: dict[str, WireTensor], message: str
) -> None:
    encoder = make(tmp_path, "place", "seen", "tags")
    with pytest.raises(RequestError, match=message):
        encoder.encode(inputs, 0, encoder.num_rows(inputs))


@pytest.mark.parametrize("name", ["price", "C1", "hour", "tags"])
@pytest.mark.parametrize("window", [(0, 3), (0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x01\0\0\0" * 2 + b"1\x01\0\0\0", "element 1 of 3 ends at byte"),
        (b"\xff\xff\xff\xff" + b"1" * 9, "element 0 of 3 ends at byte 4294967299 of 13"),
        (b"\0\0\0\0" * 2 + b"\xff\xff\xff\x7f1", "element 2 of 3 ends at byte"),
        (b"\0\0\0\0" * 3 + b"1", "1 bytes left after 3 elements"),
    ],
)
def test_damaged_texts_are_refused_or_lie_in_other_rows(
    tmp_path: Path, name: str, window: tuple[int, int], data: bytes, what: str
) -> None:
    encoder = make(tmp_path, name)
    column = "when" if name == "hour" else name
    inputs = {column: WireTensor.from_buffer("BYTES", (3,), data)}
    whole = encoder.num_rows(inputs)
    with pytest.raises(RequestError, match=what):
        encoder.encode(inputs, 0, whole)
    try:
        part = encoder.encode(inputs, *window)
    except RequestError as error:
        assert what in str(error) or "column" in str(error)
    else:
        assert part.num_rows == window[1] - window[0] < 3


def test_sets_of_datatypes_are_not_kept_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_encoder, "MAX_PLANS", 2)
    encoder = make(tmp_path, "price")
    for datatype in ("FP32", "FP64", "INT8", "INT64", "FP32"):
        inputs = {"price": WireTensor.from_list(datatype, (1,), [3])}
        assert encoder.encode(inputs, 0, 1).dense.tolist() == [[3]]
    assert len(encoder._plans) <= 2


def test_every_sparse_kind_is_known() -> None:
    """The properties are checked for a feature of every key."""
    keys = {f.key for f in SPARSE if isinstance(f, SparseFeature)}
    assert keys == {"hex", "int", "string", "quantile", "hour_of_day", "day_of_week"}
