import numpy as np
import pyarrow as pa
import pytest
import torch

from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.rows import Rows

LABEL = Label(column="y", positive=("1",), negative=("0",))


def _schema(bag: bool = False, weighted: bool = False) -> Schema:
    return Schema(
        label=LABEL,
        dense=(DenseFeature(name="d", column="d", transform="none", fill=0.0),),
        sparse=(
            SparseFeature(name="a", column="a", table="t", key="int"),
            SparseFeature(
                name="b",
                column="b",
                table="t",
                key="int",
                bag=bag,
                weight_column="w" if weighted else "",
            ),
        ),
        tables=(Table(name="t", encoding="hash", min_count=1, max_rows=50),),
    )


def _single(start: int, stop: int) -> pa.RecordBatch:
    row = np.arange(start, stop)
    return pa.record_batch(
        {
            "label": pa.array(row % 2, pa.uint8()),
            "d": pa.array(row / 2, pa.float32()),
            "a": pa.array(row, pa.uint8()),
            "b": pa.array(row + 100, pa.uint16()),
        }
    )


def _bags(rows: list[list[int]], first: int) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "label": pa.array([1] * len(rows), pa.uint8()),
            "d": pa.array([0.5] * len(rows), pa.float32()),
            "a": pa.array(range(first, first + len(rows)), pa.uint8()),
            "b": pa.array(rows, pa.list_(pa.uint8())),
            "b.weights": pa.array([[i / 10 for i in bag] for bag in rows], pa.list_(pa.float32())),
        }
    )


@pytest.mark.parametrize("selection", [slice(2, 9), np.array([9, 0, 4, 4, 3])])
def test_single_ids_over_chunks(selection):
    rows = Rows([_single(0, 4), _single(4, 4), _single(4, 10)], _schema())
    wanted = np.arange(10)[selection]
    batch = rows.batch(selection)
    assert len(rows) == 10
    assert batch.labels.tolist() == (wanted % 2).tolist()
    assert batch.dense.tolist() == [[w / 2] for w in wanted]
    assert batch.sparse.ids.view(2, -1).tolist() == [wanted.tolist(), (wanted + 100).tolist()]
    assert batch.sparse.lengths is None
    assert batch.sparse.ids.dtype == torch.int32


@pytest.mark.parametrize("selection", [slice(1, 5), np.array([4, 1, 0, 3])])
def test_bags_over_chunks(selection):
    bags = [[1, 2], [], [3], [4, 5, 6], [7]]
    rows = Rows([_bags(bags[:3], 0), _bags(bags[3:], 3)], _schema(bag=True, weighted=True))
    picked = [bags[i] for i in np.arange(5)[selection]]
    sparse = rows.batch(selection).sparse
    a = np.arange(5)[selection].tolist()
    flat = [i for bag in picked for i in bag]
    assert sparse.lengths.tolist() == [1] * len(a) + [len(bag) for bag in picked]
    assert sparse.ids.tolist() == a + flat
    # An unweighted feature beside a weighted one weighs 1.
    assert torch.allclose(sparse.weights, torch.tensor([1.0] * len(a) + [i / 10 for i in flat]))


def test_unlabelled_rows_have_nan_labels():
    batch = _single(0, 3).drop_columns(["label"])
    rows = Rows([batch], _schema())
    assert not rows.is_labelled
    assert rows.batch(slice(0, 3)).labels.isnan().all()


def test_batches_cover_all_rows_in_order():
    rows = Rows([_single(0, 7), _single(7, 10)], _schema())
    dense = [x for batch in rows.batches(4) for x in batch.dense[:, 0].tolist()]
    assert dense == [i / 2 for i in range(10)]


def test_no_rows():
    rows = Rows([], _schema())
    assert len(rows) == 0
    assert list(rows.batches(4)) == []
