"""What a request must look like, and the words that say it does not."""

from typing import Any

import numpy as np
import pytest

from fastdlrm.contracts.schema import Label, Schema, SparseFeature
from fastdlrm.contracts.signature import Signature
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import RequestError
from tests import staging

PLAIN = staging.schema(
    staging.dense("price"),
    staging.sparse("C1"),
    staging.sparse("word", "string"),
    staging.sparse("item", "int"),
)
JAGGED = staging.schema(
    staging.dense("price"),
    staging.sparse("seen", "int", bag=True, weight_column="dwell"),
    staging.sparse("tags", "string", bag=True, separator="|"),
    staging.sparse("user", "int"),
)


def numbers(*values: float, dtype: str = "<f8") -> WireTensor:
    return WireTensor.from_array(np.array(values, dtype=dtype))


def texts(*values: str) -> WireTensor:
    return WireTensor.from_texts(values)


def plain(**changed: WireTensor | None) -> dict[str, WireTensor]:
    """Three rows of PLAIN; None takes an input away."""
    inputs: dict[str, Any] = {
        "price": numbers(1, 2, 3),
        "C1": texts("a", "b", "c"),
        "word": texts("x", "y", ""),
        "item": numbers(7, 8, 9, dtype="<i8"),
        **changed,
    }
    return {name: tensor for name, tensor in inputs.items() if tensor is not None}


def jagged(**changed: WireTensor | None) -> dict[str, WireTensor]:
    """Two rows of JAGGED: bags of 2 and 1 items."""
    inputs: dict[str, Any] = {
        "price": numbers(1, 2),
        "seen": numbers(5, 6, 7, dtype="<i8"),
        "seen.lengths": numbers(2, 1, dtype="<i4"),
        "dwell": numbers(0.5, 1, 2),
        "tags": texts("a|b", ""),
        "user": numbers(1, 2, dtype="<i4"),
        **changed,
    }
    return {name: tensor for name, tensor in inputs.items() if tensor is not None}


def encoded(**changed: WireTensor | None) -> dict[str, WireTensor]:
    """Two rows of JAGGED, encoded: features seen, tags, user."""
    inputs: dict[str, Any] = {
        "dense": WireTensor.from_array(np.ones((2, 1), dtype=np.float32)),
        "ids": numbers(5, 6, 7, 2, 4, 3, dtype="<i4"),
        "lengths": WireTensor.from_array(np.array([[2, 1], [1, 0], [1, 1]], dtype=np.int32)),
        "weights": numbers(1, 1, 1, 1, 1, 1, dtype="<f4"),
        **changed,
    }
    return {name: tensor for name, tensor in inputs.items() if tensor is not None}


def column(values: Any, dtype: str = "<f8") -> WireTensor:
    return WireTensor.from_array(np.array(values, dtype=dtype))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (plain(), 3),
        (plain(y=texts("1", "0")), 3),  # the label is left alone, even of another length
        (plain(price=column([[1], [2], [3]])), 3),
        (plain(price=numbers(1)), 3),
        (plain(price=column([[1]]), C1=texts("a"), word=texts("a"), item=texts("4")), 1),
        (plain(price=texts("1", "", "2")), 3),
        (
            {
                "dense": column(np.ones((4, 1)), "<f4"),
                "ids": column(np.ones((4, 3)), "<i8"),
                "y": texts(),
            },
            4,
        ),
        ({"dense": column([[1]], "<f4"), "ids": column(np.ones((4, 3)), "<i4")}, 4),
        ({"dense": column(np.ones((4, 1)), "<f4"), "ids": column(np.ones((1, 3)), "<i4")}, 4),
    ],
)
def test_rows_of_single_values_are_counted(inputs: dict[str, WireTensor], expected: int) -> None:
    assert Signature(PLAIN).num_rows(inputs) == expected


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (jagged(), 2),
        (jagged(**{"dwell.lengths": numbers(1, 2, dtype="<i8")}), 2),
        (jagged(**{"seen.lengths": numbers(3, dtype="<i8")}), 2),
        (jagged(tags=texts("a", "b", "c"), **{"tags.lengths": numbers(0, 3, dtype="<i8")}), 2),
        (encoded(), 2),
        (encoded(dense=column([[1]], "<f4")), 2),
        (encoded(lengths=column([[4], [1], [1]], "<i8")), 2),
        (encoded(lengths=column([[4], [1], [1]], "<i8"), dense=column([[1]], "<f4")), 1),
    ],
)
def test_rows_of_bags_are_counted(inputs: dict[str, WireTensor], expected: int) -> None:
    assert Signature(JAGGED).num_rows(inputs) == expected


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"input 'price' is missing \('price', 'C1', 'word', 'item'\); send every raw column"),
        (plain(C1=None), r"input 'C1' is missing \('C1'\)"),
        (plain(other=texts("a")), r"input 'other' is unknown; the inputs are price, C1, word"),
        (plain(C1=numbers(1, 2, 3)), r"input 'C1': datatype FP64; BYTES is allowed"),
        (plain(price=column([[1, 2, 3]])), r"input 'price': shape \[1, 3\]; \[N\] or \[N, 1\]"),
        (plain(price=column(1.0)), r"input 'price': shape \[\]; \[N\] or \[N, 1\] is allowed"),
        (plain(item=texts("1", "2")), r"input 'item' has 2 rows, input 'price' has 3; send one"),
        (plain(item=texts()), r"input 'item' has 0 rows, input 'price' has 3"),
        (plain(price=numbers()), r"input 'price' has 0 rows, at least 1 is needed"),
        ({"dense": column([[1]], "<f4")}, r"input 'ids' is missing \('ids'\)"),
        (
            {"dense": column([[1, 2]], "<f4"), "ids": column([[1, 2, 3]], "<i4")},
            r"input 'dense': shape \[1, 2\]; \[-1, 1\] is allowed",
        ),
        (
            {"dense": column([[1]]), "ids": column([[1, 2, 3]], "<i4")},
            r"input 'dense': datatype FP64; FP32 is allowed",
        ),
        (
            {"dense": column(np.ones((3, 1)), "<f4"), "ids": column(np.ones((2, 3)), "<i4")},
            r"input 'ids' has 2 rows, input 'dense' has 3",
        ),
        (
            {
                "dense": column([[1]], "<f4"),
                "ids": column([[1, 2, 3]], "<i4"),
                "lengths": column([[1], [1], [1]], "<i4"),
            },
            r"input 'lengths' is unknown",
        ),
        (
            plain(dense=column([[1]], "<f4"), ids=column([[1, 2, 3]], "<i4")),
            r"input 'dense' is unknown",
        ),
    ],
)
def test_what_is_wrong_with_single_values_is_told(
    inputs: dict[str, WireTensor], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Signature(PLAIN).num_rows(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            jagged(**{"seen.lengths": None}),
            r"input 'seen': its values are bags; send 'seen.lengths', INT32 or INT64",
        ),
        (
            jagged(tags=numbers(1, 2)),
            r"input 'tags': datatype FP64 without 'tags.lengths'; send the lengths",
        ),
        (
            jagged(**{"seen.lengths": numbers(2, 2, dtype="<i4")}),
            r"input 'seen.lengths': the lengths add up to 4, but input 'seen' has 3 values",
        ),
        (
            jagged(**{"seen.lengths": numbers(4, -1, dtype="<i4")}),
            r"input 'seen.lengths': length 4; 0 to 3, the values of input 'seen', is allowed",
        ),
        (
            jagged(**{"seen.lengths": numbers(2, 1)}),
            r"input 'seen.lengths': datatype FP64; INT32, INT64 is allowed",
        ),
        (
            jagged(seen=column([[5, 6, 7]], "<i8")),
            r"input 'seen': shape \[1, 3\] with 'seen.lengths'; \[L\] is allowed",
        ),
        (
            jagged(**{"seen.lengths": numbers(1, 1, 1, dtype="<i4")}),
            r"input 'seen.lengths' has 3 rows, input 'price' has 2",
        ),
        (
            jagged(**{"user.lengths": numbers(1, 1, dtype="<i4")}),
            r"input 'user.lengths' is unknown",
        ),
        (encoded(weights=None), r"input 'weights' is missing"),
        (
            encoded(weights=numbers(1, dtype="<f4")),
            r"input 'weights': 1 weights for 6 ids; send one an id",
        ),
        (
            encoded(lengths=column([[2, 1], [1, 0], [2, 0]], "<i4")),
            r"input 'lengths': row 2 is that of feature 'user', which has one id a sample",
        ),
        (
            encoded(lengths=column([[2, 1], [1, 1], [1, 1]], "<i4")),
            r"input 'lengths': the lengths add up to 7, but input 'ids' has 6 values",
        ),
    ],
)
def test_what_is_wrong_with_bags_is_told(inputs: dict[str, WireTensor], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Signature(JAGGED).num_rows(inputs)


def test_a_column_of_values_and_of_bags_takes_text_alone() -> None:
    whole = SparseFeature(name="whole", column="tags", table="tags", key="string")
    shared = staging.schema(staging.sparse("tags", "string", bag=True, separator="|"), whole)
    signature = Signature(shared)
    assert signature.num_rows({"tags": texts("a|b", "c")}) == 2
    inputs = {"tags": texts("a", "c"), "tags.lengths": numbers(1, 1, dtype="<i4")}
    with pytest.raises(RequestError, match=r"a feature takes one value a row of this column"):
        signature.num_rows(inputs)


def test_metadata_names_the_datatypes_to_prefer() -> None:
    found = {(s.form, s.name): (s.datatype, s.shape) for s in Signature(JAGGED).inputs}
    assert found == {
        ("columns", "price"): ("FP64", (-1,)),
        ("columns", "seen"): ("INT64", (-1,)),
        ("columns", "seen.lengths"): ("INT32", (-1,)),
        ("columns", "dwell"): ("FP64", (-1,)),
        ("columns", "dwell.lengths"): ("INT32", (-1,)),
        ("columns", "tags"): ("BYTES", (-1,)),
        ("columns", "tags.lengths"): ("INT32", (-1,)),
        ("columns", "user"): ("INT64", (-1,)),
        ("encoded", "dense"): ("FP32", (-1, 1)),
        ("encoded", "ids"): ("INT32", (-1,)),
        ("encoded", "lengths"): ("INT32", (3, -1)),
        ("encoded", "weights"): ("FP32", (-1,)),
    }


def test_raw_columns_may_be_called_like_encoded_inputs() -> None:
    schema = Schema(
        label=Label(column="y", positive=("1",), negative=("0",)),
        dense=(staging.dense("dense"),),
        sparse=(staging.sparse("ids", "int"),),
        tables=(staging.table("ids"),),
    )
    signature = Signature(schema)
    assert signature.form({"dense": numbers(1), "ids": texts("4")}) == "columns"
    assert signature.num_rows({"dense": numbers(1, 2), "ids": texts("4", "5")}) == 2
