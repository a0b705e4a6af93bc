"""Batches of single ids against numpy's own indexing: types, chunks, slices and runs of rows."""

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.rows import Rows

ID_TYPES = st.sampled_from([np.uint8, np.uint16, np.uint32])
BIGGEST_ID = 2**31 - 1


def schema_of(num_dense: int, num_sparse: int) -> Schema:
    return Schema(
        label=Label(column="y", positive=("1",), negative=("0",)),
        dense=tuple(
            DenseFeature(name=f"d{i}", column="d", transform="none", fill=0.0)
            for i in range(num_dense)
        ),
        sparse=tuple(
            SparseFeature(name=f"s{i}", column="s", table="t", key="int") for i in range(num_sparse)
        ),
        tables=(Table(name="t", encoding="hash", min_count=1, max_rows=BIGGEST_ID),),
    )


@st.composite
def selections(draw: st.DrawFn, num_rows: int) -> slice | np.ndarray:
    """A slice, rows one by one, or runs of consecutive rows."""
    kind = draw(st.sampled_from(["slice", "rows", "runs"]))
    row = st.integers(0, num_rows - 1)
    if kind == "slice":
        start, stop = sorted((draw(row), draw(st.integers(0, num_rows))))
        return slice(start, stop)
    if kind == "rows":
        return np.array(draw(st.lists(row, max_size=30)), dtype=np.int64)
    runs = draw(st.lists(st.tuples(row, st.integers(1, 40)), min_size=1, max_size=12))
    return np.concatenate([np.arange(a, min(a + n, num_rows)) for a, n in runs])


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any),
    id_types=st.lists(ID_TYPES, max_size=4),
    num_dense=st.integers(0, 3),
    labelled=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_batch_holds_the_rows_asked_for(
    data: st.DataObject,
    sizes: list[int],
    id_types: list[type],
    num_dense: int,
    labelled: bool,
    seed: int,
) -> None:
    if not id_types and not num_dense:
        num_dense = 1  # a schema has a feature
    rng, n = np.random.default_rng(seed), sum(sizes)
    columns: dict[str, np.ndarray] = {}
    if labelled:
        columns["label"] = rng.integers(0, 2, n).astype(np.uint8)
    for j in range(num_dense):
        columns[f"d{j}"] = rng.normal(size=n).astype(np.float32)
    for f, kind in enumerate(id_types):
        most = min(np.iinfo(kind).max, BIGGEST_ID)
        columns[f"s{f}"] = rng.integers(0, most, n, endpoint=True).astype(kind)
    whole = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
    starts = np.cumsum([0, *sizes])
    # Slices of one batch: the columns of all chunks but the first begin inside a buffer.
    chunks = [whole.slice(a, size) for a, size in zip(starts, sizes, strict=False)]
    rows = Rows(chunks, schema_of(num_dense, len(id_types)))
    selection = data.draw(selections(n))

    batch = rows.batch(selection)

    picked = {name: values[selection] for name, values in columns.items()}
    B = len(np.arange(n)[selection])
    assert batch.num_samples == B
    assert batch.sparse.lengths is None
    assert batch.sparse.weights is None
    ids = batch.sparse.ids.view(len(id_types), B)
    assert batch.buffer is not None
    assert ids.dtype == torch.int32
    for f in range(len(id_types)):
        assert ids[f].tolist() == picked[f"s{f}"].tolist()
    for j in range(num_dense):
        assert batch.dense[:, j].tolist() == picked[f"d{j}"].tolist()
    if labelled:
        assert batch.labels.tolist() == picked["label"].tolist()
    else:
        assert batch.labels.isnan().all()
