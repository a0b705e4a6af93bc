"""Encoded rows as queries."""

import pyarrow as pa
import pytest

from fastdlrm.contracts.server_info import ModelMetadata, TensorMetadata
from fastdlrm.errors import DataError
from fastdlrm.load.columns import columns_of

RAW = ModelMetadata(
    name="m",
    versions=("1",),
    platform="p",
    inputs=(TensorMetadata(name="C1", datatype="INT64", shape=(-1,)),),
    outputs=(),
)


def tensors_of(rows, start, count):
    columns, unused = columns_of(rows, RAW)
    assert not unused
    found = {}
    for column in columns:
        found |= column.tensors(start, count)
    return {
        name: (t.datatype, t.shape, t.values().reshape(-1).tolist()) for name, t in found.items()
    }


def test_bags_go_feature_major():
    """Two features, three rows; rows 2 and 0: feature 0 has 5, 6 and 1, feature 1 none and 2, 3."""
    bags = [[[1], [2, 3]], [[], [4]], [[5, 6], []]]
    rows = pa.table({"ids": pa.array(bags, pa.list_(pa.list_(pa.int32()), 2))})
    assert tensors_of(rows, 2, 2) == {
        "ids": ("INT32", (5,), [5, 6, 1, 2, 3]),
        "lengths": ("INT32", (2, 2), [2, 1, 0, 2]),
    }


def test_single_ids_and_dense():
    rows = pa.table(
        {
            "dense": pa.array([[0.5, 1.0], [2.0, 3.0]], pa.list_(pa.float32(), 2)),
            "ids": pa.array([[7, 8, 9], [1, 2, 3]], pa.list_(pa.int32(), 3)),
        }
    )
    assert tensors_of(rows, 1, 2) == {
        "dense": ("FP32", (2, 2), [2.0, 3.0, 0.5, 1.0]),
        "ids": ("INT32", (2, 3), [1, 2, 3, 7, 8, 9]),
    }


def test_other_columns_are_none_of_the_encoded_form():
    rows = pa.table({"ids": [[1]], "x": [1]})
    with pytest.raises(DataError, match="rows have the columns ids, x, but model 'm' takes C1"):
        columns_of(rows, RAW)
