"""Requests are encoded as raw rows of a log are, bit for bit, or refused in the same words."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.contracts.schema import DenseFeature, SparseFeature
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.data.values import hex_ids, int_ids, numbers
from fastdlrm.errors import RequestError
from fastdlrm.export.request_encoder import RequestEncoder
from fastdlrm.export.request_kernels import write_text_numbers
from tests.request_model import DENSE, SPARSE, WORDS, RequestModel, assert_same, text_inputs

MISSING = st.sampled_from([("",), ("", "NA", "-1", "ab"), ("NA",), ()])
ODD_NUMBERS = (
    *("1e3", "1E+3", "1e2.5", "1e", "1e+", "1e22", "1e23", "1e-22", "1e-23", "1e-7", "1d3"),
    *("+1", "--1", "-", "-0", "-0.0", "1.", ".", ".5", "1_0", "1,5", "0x1p3", "1\u0663"),
    *(" 1", "1 ", "\t2", "1\0", "00000000000000000001", "0e99999999999999999999"),
    *("inf", "-inf", "Infinity", "nan", "NaN", "-nan", "1e400", "-1e-400", "5e-324"),
    *("3.4e38", "3.5e38", "0.1", "0.30000000000000004", "123456789012345678901234567890"),
    *("9007199254740992", "9007199254740993", "9007199254740993e-3"),
)
TEXTS: dict[str, st.SearchStrategy[str]] = {
    "number": st.sampled_from(["0", "1", "2.5", "-3", "1e3", "0.1", "400", "99999", "1.4999999"])
    | st.floats(-1e6, 1e6).map(repr),
    "hex": st.sampled_from(["0", "1", "ab", "AB", "0ab", "deadbeef", "f" * 16, "64", "65"])
    | st.integers(0, 2**64 - 1).map("{:x}".format),
    "known": st.sampled_from(["0", "1", "ab", "000000001"]),
    "int": st.sampled_from(["0", "1", "+7", "-3", "-9223372036854775808", "12"])
    | st.integers(-(2**63), 2**63 - 1).map(str),
    "row": st.integers(0, 7).map(str),
    "string": st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=4),
    "pattern": st.sampled_from(["14102100", "14102110", "15010123"]),
    "seconds": st.integers(0, 2**31).map(str),
}
WRONG: dict[str, st.SearchStrategy[str]] = {
    "number": st.sampled_from(ODD_NUMBERS),
    "hex": st.sampled_from(["g", " 1", "+1", "-1", "f" * 17, "0x1", "é", "1e300"]),
    "int": st.sampled_from(["1.0", "9223372036854775808", "+", "-", "1e3", "é", "-1", "8"]),
    "string": st.just("tea"),
    "pattern": st.sampled_from(["141021", "x"]),
    "seconds": st.sampled_from(["x", "1e300", "253402300800"]),
}
KINDS = {"C3": "known", "C4": "known", "place": "row"}
KEYS = {"quantile": "number", "hour_of_day": "pattern", "day_of_week": "seconds"}


@st.composite
def raw_rows(draw: st.DrawFn, features: tuple[Any, ...], is_wrong: bool) -> pa.RecordBatch:
    """Raw columns of some rows: text, lists where a bag has no separator; null where missing."""
    num_rows = draw(st.integers(1, 6))
    wrong_column = draw(st.sampled_from([f.column for f in features])) if is_wrong else None
    columns: dict[str, pa.Array] = {}

    def values(kind: str, column: str, count: int) -> list[str]:
        wrong = {"known": "hex", "row": "int"}.get(kind, kind)
        one = TEXTS[kind] | WRONG[wrong] if column == wrong_column else TEXTS[kind]
        return draw(st.lists(one, min_size=count, max_size=count))

    for feature in features:
        if feature.column in columns:
            continue
        is_dense = isinstance(feature, DenseFeature)
        key = "number" if is_dense else KEYS.get(feature.key, feature.key)
        kind = KINDS.get(feature.name, key)
        if is_dense or not feature.bag:
            gap = kind in ("known", "row")
            texts: list[Any] = values(kind, feature.column, num_rows)
            gaps = st.lists(st.integers(0, 4), min_size=num_rows, max_size=num_rows)
            if not gap:
                texts = [t if g else None for t, g in zip(texts, draw(gaps), strict=True)]
            columns[feature.column] = pa.array(texts, pa.string())
            continue
        bags = [values(kind, feature.column, draw(st.integers(0, 3))) for _ in range(num_rows)]
        weights = [[draw(TEXTS["number"]) for _ in bag] for bag in bags]
        if wrong_column == feature.column and weights and feature.is_weighted:
            weights[-1] = weights[-1] + draw(st.lists(WRONG["number"], max_size=1))
        named = {feature.column: bags}
        if feature.is_weighted:
            named[feature.weight_column] = weights
        for name, lists in named.items():
            separator = feature.separator
            columns[name] = (
                pa.array([separator.join(bag) for bag in lists], pa.string())
                if separator
                else pa.array(lists, pa.list_(pa.string()))
            )
    return pa.RecordBatch.from_pydict(columns)


def as_sent(raw: pa.RecordBatch, model: RequestModel) -> pa.RecordBatch:
    """The same rows as the server understands them: an empty text is null, as the module says."""
    words = {f.column for f in model.schema.sparse if f.key == "string" and not f.bag}
    columns = []
    for name, column in zip(raw.schema.names, raw.columns, strict=True):
        if not pa.types.is_string(column.type):
            columns.append(column)
        elif name in words and "" not in model.missing:
            columns.append(column.fill_null(""))
        else:
            is_empty = pc.equal(column, "").fill_null(True)
            columns.append(pc.if_else(is_empty, pa.scalar(None, pa.string()), column))
    return pa.RecordBatch.from_arrays(columns, names=raw.schema.names)


@settings(max_examples=200, deadline=None)
@given(st.data(), MISSING, st.booleans())
def test_a_request_is_encoded_as_the_log_is(
    data: st.DataObject, missing: tuple[str, ...], is_wrong: bool
) -> None:
    pool = st.lists(st.sampled_from((*DENSE, *SPARSE)), min_size=1, unique_by=lambda f: f.name)
    features = tuple(data.draw(st.just([*DENSE, *SPARSE]) | pool))
    raw = data.draw(raw_rows(features, is_wrong))
    with tempfile.TemporaryDirectory() as folder:
        model = RequestModel(Path(folder), features, missing)
        encoder = RequestEncoder(model.schema, model.encoding, missing, model.index)
    inputs = text_inputs(raw)
    assert encoder.num_rows(inputs) == raw.num_rows
    start = data.draw(st.integers(0, raw.num_rows - 1))
    stop = data.draw(st.integers(start + 1, raw.num_rows))
    sent = as_sent(raw, model)
    for first, last in ((0, raw.num_rows), (start, stop)):
        expected = model.by_prepare(sent.slice(first, last - first))
        if isinstance(expected, tuple):
            row, what = expected
            with pytest.raises(RequestError) as refused:
                encoder.encode(inputs, first, last)
            if row >= 0:
                assert str(refused.value) == f"row {first + row}: {what}; correct it"
            else:
                assert str(refused.value).startswith("row ")
            return
        assert_same(encoder.join([encoder.encode(inputs, first, last)]), expected)
    whole = model.by_prepare(sent)
    assert not isinstance(whole, tuple)
    if start > 0:
        cuts = [(0, start), (start, raw.num_rows)]
        parts = [encoder.encode(inputs, *cut) for cut in cuts]
        assert_same(encoder.join(parts), whole)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_shared_value_is_that_of_all_rows(data: st.DataObject) -> None:
    raw = data.draw(raw_rows((*DENSE, *SPARSE), False))
    shared = data.draw(st.sets(st.sampled_from(raw.schema.names)))
    if {"seen", "dwell"} & shared:
        shared |= {"seen", "dwell"}
    if {"paths", "strengths"} & shared:
        shared |= {"paths", "strengths"}
    first = pa.array(np.zeros(raw.num_rows, dtype=np.int32))
    columns = [
        column.take(first) if name in shared else column
        for name, column in zip(raw.schema.names, raw.columns, strict=True)
    ]
    repeated = pa.RecordBatch.from_arrays(columns, names=raw.schema.names)
    inputs = text_inputs(repeated)
    one = text_inputs(raw.slice(0, 1))
    for name in shared:
        inputs |= {n: one[n] for n in (name, f"{name}.lengths") if n in one}
    with tempfile.TemporaryDirectory() as folder:
        model = RequestModel(Path(folder))
        encoder = RequestEncoder(model.schema, model.encoding, ("",), model.index)
    num_rows = encoder.num_rows(inputs)
    assert num_rows == (raw.num_rows if len(shared) < len(raw.schema.names) else 1)
    start = data.draw(st.integers(0, num_rows - 1))
    sent = as_sent(repeated, model)
    expected = model.by_prepare(sent.slice(start, num_rows - start))
    assert not isinstance(expected, tuple)
    assert_same(encoder.join([encoder.encode(inputs, start, num_rows)]), expected)


FLOATS = ("FP16", "BF16", "FP32", "FP64")
WHOLE = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_numbers_give_what_their_text_gives(data: st.DataObject) -> None:
    """Small whole numbers and halves, which every datatype holds."""
    features = tuple(
        f
        for f in (*DENSE, *SPARSE)
        if isinstance(f, DenseFeature) or (f.key in ("int", "quantile") and not f.bag)
    )
    num_rows = data.draw(st.integers(1, 5))
    typed, texts = {}, {}
    for name in dict.fromkeys(f.column for f in features):
        is_float = data.draw(st.booleans()) and name not in ("item", "place", "user")
        datatype = data.draw(st.sampled_from(FLOATS if is_float else (*WHOLE, *FLOATS)))
        one: st.SearchStrategy[float] = st.integers(0, 7)
        if is_float:
            one = one.map(lambda n: n / 2)
        values: list[Any] = data.draw(st.lists(one, min_size=num_rows, max_size=num_rows))
        if datatype in FLOATS and name != "place" and data.draw(st.booleans()):
            values[0] = None
        typed[name] = WireTensor.from_list(datatype, (num_rows,), values)
        texts[name] = WireTensor.from_texts([None if v is None else str(v) for v in values])
    with tempfile.TemporaryDirectory() as folder:
        model = RequestModel(Path(folder), features)
        encoder = RequestEncoder(model.schema, model.encoding, ("",), model.index)
    assert encoder.num_rows(typed) == num_rows
    by_text = encoder.join([encoder.encode(texts, 0, num_rows)])
    assert_same(encoder.join([encoder.encode(typed, 0, num_rows)]), by_text)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(ODD_NUMBERS)
    | st.from_regex(r"[+-]?[0-9]{0,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{0,3})?", fullmatch=True)
    | st.floats().map(repr)
    | st.floats(-1e15, 1e15).map("{:.6g}".format)
)
def test_a_number_is_parsed_as_arrow_does_or_left(text: str) -> None:
    tensor = WireTensor.from_texts([text])
    out = np.full((1, 1), 7.0)
    rare = np.empty((1, 3), np.int64), np.empty(2, np.int32), np.empty(len(tensor.data), np.uint8)
    num_rare = write_text_numbers(
        tensor.data.copy(),
        np.array([0, len(tensor.data)]),
        np.array([1]),
        (np.empty(0, np.uint8), np.zeros(1, np.int64)),
        np.array([0]),
        out,
        rare,
    )
    if num_rare:
        assert rare[0].tolist() == [[0, 0, 1]]
        assert rare[2][: rare[1][1]].tobytes().decode() == text
    elif text:
        expected = pc.cast(pa.array([text]), pa.float64()).to_numpy()
        np.testing.assert_array_equal(out[0].view(np.int64), expected.view(np.int64))
        assert numbers(pa.array([text]))[1] == {}
    else:
        assert np.isnan(out[0, 0])


@settings(max_examples=100, deadline=None)
@given(st.lists(WRONG["hex"] | WRONG["int"] | TEXTS["hex"] | TEXTS["int"], min_size=1, max_size=4))
def test_ids_are_sound_where_the_log_has_them_so(values: list[str]) -> None:
    for name, parse in (("C2", hex_ids), ("user", int_ids)):
        feature = next(f for f in SPARSE if f.name == name)
        with tempfile.TemporaryDirectory() as folder:
            model = RequestModel(Path(folder), (feature,))
        encoder = RequestEncoder(model.schema, model.encoding, ("",), model.index)
        _, flaws = parse(pa.array(values))
        inputs = {name: WireTensor.from_texts(values)}
        if not flaws:
            encoder.encode(inputs, 0, len(values))
            continue
        row, what = min(flaws.items())
        with pytest.raises(RequestError) as refused:
            encoder.encode(inputs, 0, len(values))
        assert str(refused.value) == f"row {row}: column {name!r}: {what}; correct it"


def features_of(*names: str) -> tuple[SparseFeature, ...]:
    return tuple(f for f in SPARSE if f.name in names)


EDGES_OF_UTF8 = st.sampled_from(
    [
        bytes.fromhex(octets)
        for octets in (
            *("c1bf", "c280", "dfbf", "e09fbf", "e0a080", "ed9fbf", "eda080", "ee8080", "efbfbf"),
            *("f08fbfbf", "f0908080", "f48fbfbf", "f4908080", "f5808080", "c2", "e282", "f09080"),
            *("80", "c2c2", "c27f", "e28228", "f0908028", "41c280"),
        )
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EDGES_OF_UTF8 | st.binary(max_size=4), min_size=1, max_size=3))
def test_texts_that_are_not_utf8_are_refused(values: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = RequestModel(Path(folder), features_of("query"))
    encoder = RequestEncoder(model.schema, model.encoding, ("",), model.index)
    inputs = {"query": WireTensor.from_texts(values)}
    try:
        raw = pa.record_batch({"query": pa.array([value.decode() for value in values])})
    except UnicodeDecodeError:
        with pytest.raises(RequestError, match="input 'query': an element is not UTF-8 text"):
            encoder.encode(inputs, 0, len(values))
        return
    expected = model.by_prepare(as_sent(raw, model))
    assert not isinstance(expected, tuple)
    assert_same(encoder.join([encoder.encode(inputs, 0, len(values))]), expected)
