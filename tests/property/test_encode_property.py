"""Fitting and encoding any rows, against an oracle that handles one value at a time."""

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.contracts.hashing import bucket, text_key
from fastdlrm.contracts.schema import DenseFeature, SparseFeature, Table
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.data.encode import Encoder
from tests import staging
from tests.staging import NONE

NUM_TRAIN, NUM_TEST = 12, 6

NUMBERS = st.none() | st.just(math.nan) | st.floats(-1e30, 1e30) | st.integers(-3, 3).map(float)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "hex": st.integers(0, 5) | st.integers(0, 2**64 - 1),
    "int": st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1),
    "string": st.sampled_from("aàb") | st.text(st.characters(codec="utf-8"), max_size=5),
}


@st.composite
def numbered(draw: st.DrawFn) -> tuple[SparseFeature, Table, list[Any]]:
    """A feature of encoding "reference"."""
    max_rows = draw(st.sampled_from([0, 3, 7, 2**31]))
    num_rows = NUM_TRAIN + NUM_TEST
    values = draw(st.lists(st.none() | VALUES["hex"], min_size=num_rows, max_size=num_rows))
    table = staging.table("f", "reference", max_rows=max_rows)
    return staging.sparse("f", "hex"), table, [draw(VALUES["hex"]), *values[1:]]


@st.composite
def columns(draw: st.DrawFn) -> tuple[SparseFeature | DenseFeature, Table | None, list[Any]]:
    """A feature, its table and the values of all rows; the first train row has one."""
    num_rows = NUM_TRAIN + NUM_TEST
    if draw(st.booleans()):
        transform = draw(st.sampled_from(["none", "log1p", "standardize"]))
        fill = draw(st.floats(-100, 100))
        values = draw(st.lists(NUMBERS, min_size=num_rows, max_size=num_rows))
        return staging.dense("f", transform, fill), None, [1.0, *values[1:]]
    if draw(st.integers(0, 4)) == 0:
        return draw(numbered())
    encoding = draw(st.sampled_from(["vocabulary", "hash"]))
    max_rows = draw(st.integers(3, 9) | st.just(0 if encoding == "vocabulary" else 300))
    table = staging.table("f", encoding, draw(st.integers(1, 3)), max_rows)
    key = draw(st.sampled_from([*VALUES, "quantile"]))
    if key == "quantile":
        values = draw(st.lists(NUMBERS, min_size=num_rows, max_size=num_rows))
        feature = staging.sparse("f", key, num_quantiles=draw(st.integers(2, 6)))
        return feature, table, [1.0, *values[1:]]
    one = VALUES[key]
    if draw(st.booleans()):
        bags = draw(st.lists(st.lists(one, max_size=4), min_size=num_rows, max_size=num_rows))
        return staging.sparse("f", key, bag=True), table, [[draw(one)], *bags[1:]]
    values = draw(st.lists(st.none() | one, min_size=num_rows, max_size=num_rows))
    return staging.sparse("f", key), table, [draw(one), *values[1:]]


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def dense_oracle(feature: DenseFeature, values: list[Any]) -> list[float]:
    filled = [feature.fill if is_missing(v) else v for v in values]
    if feature.transform == "log1p":
        return [math.log1p(max(v, 0.0)) for v in filled]
    if feature.transform == "none":
        return filled
    train = filled[:NUM_TRAIN]
    mean = math.fsum(train) / len(train)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in train) / len(train))
    return [(v - mean) / (std or 1.0) for v in filled]


def edges_oracle(values: list[Any], num_quantiles: int) -> list[float]:
    known = sorted(v for v in values[:NUM_TRAIN] if not is_missing(v))
    places = [j * len(known) // num_quantiles for j in range(1, num_quantiles)]
    return sorted({known[place] for place in places} - {known[0]})


def ids_oracle(feature: SparseFeature, table: Table, values: list[Any]) -> list[Any]:
    if table.encoding == "reference":
        plain = [(v or 0) % (table.max_rows or 2**64) for v in values]
        return [list(dict.fromkeys(plain)).index(v) for v in plain]
    edges = edges_oracle(values, feature.num_quantiles) if feature.key == "quantile" else []

    def key(value: Any) -> int:
        if feature.key == "string":
            return text_key(value)
        if feature.key == "quantile":
            return sum(value >= edge for edge in edges)
        return int(value) % 2**64

    bags = values if feature.bag else [[] if is_missing(v) else [v] for v in values]
    counts = Counter(key(v) for bag in bags[:NUM_TRAIN] for v in bag)
    frequent = [(-n, k) for k, n in counts.items() if n >= table.min_count]
    kept = [k for _, k in sorted(frequent)][: table.max_rows - 2 if table.max_rows else None]

    def row(value: Any) -> int:
        if table.encoding == "hash":
            return 2 + bucket(key(value), table.max_rows - 2)
        return 2 + kept.index(key(value)) if key(value) in kept else 0

    rows = [[row(v) for v in bag] for bag in bags]
    return rows if feature.bag else [r[0] if r else 1 for r in rows]


@settings(max_examples=80, deadline=None)
@given(columns(), st.integers(1, NUM_TRAIN))
def test_encoding_equals_the_oracle(
    column: tuple[SparseFeature | DenseFeature, Table | None, list[Any]], row_group_rows: int
) -> None:
    feature, table, values = column
    if isinstance(feature, SparseFeature):
        kind = staging.STAGED_TYPES[feature.key]
        staged = {"s.f": pa.array(values, pa.list_(kind) if feature.bag else kind)}
    else:
        staged = {"d.f": pa.array(values, pa.float64())}
    schema = staging.schema(feature) if table is None else staging.schema(feature, table)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = staging.staged(
            folder,
            {name: array[:NUM_TRAIN] for name, array in staged.items()},
            {name: array[NUM_TRAIN:] for name, array in staged.items()},
            row_group_rows=row_group_rows,
        )
        split = SplitConfig(validation=NONE, test=Holdout(by="file", amount=1))
        encoding = staging.fit(folder, rows, schema, split, memory_bytes=1 << 20)
        encoder = Encoder.load(folder, schema, encoding)
        blocks = [encoder.encode(block.rows) for block in rows.blocks(rows.schema.names)]
    found = pa.Table.from_batches(blocks).column("f")
    if isinstance(feature, SparseFeature):
        assert table is not None
        assert found.to_pylist() == ids_oracle(feature, table, values)
    else:
        expected = np.float32(dense_oracle(feature, values))
        np.testing.assert_allclose(found.to_numpy(), expected, rtol=2e-6, atol=1e-6)
