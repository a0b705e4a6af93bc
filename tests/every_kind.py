"""A small dataset with a feature of every kind: bags, weights, a shared table, hashes, buckets."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fastdlrm.contracts.manifest import DatasetManifest
from fastdlrm.contracts.schema import Label
from fastdlrm.data.config import (
    DataConfig,
    DenseGroup,
    Holdout,
    SourceConfig,
    SparseGroup,
    SplitConfig,
)
from fastdlrm.data.prepare import prepare

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
"""A raw value that would be markup, were it not escaped."""
WORDS = [HOSTILE, "a & b", 'say "no"', "tea\n<b>milk</b>", "", "plain"]
NONE = Holdout(by="none")
TEST_IS_LAST_FILE = SplitConfig(
    validation=Holdout(by="position", amount=0.1), test=Holdout(by="file", amount=1)
)
NOTHING_HELD_OUT = SplitConfig(validation=NONE, test=NONE)

SPARSE = (
    SparseGroup(columns=("item",), key="int", table="item", min_count=2),
    SparseGroup(
        columns=("seen",), key="int", bag=True, weight_column="dwell", table="item", min_count=2
    ),
    SparseGroup(columns=("word",)),
    SparseGroup(columns=("user",), key="int", encoding="hash", max_rows=40),
    SparseGroup(columns=("price",), name="{column} <bucket>", key="quantile", num_quantiles=4),
)
DENSE = (
    DenseGroup(columns=("price",), transform="log1p"),
    DenseGroup(columns=("age",), transform="standardize", fill=40.0),
    DenseGroup(columns=("constant",), transform="none"),
)


def every_kind(
    folder: Path,
    *,
    split: SplitConfig = TEST_IS_LAST_FILE,
    dense: tuple[DenseGroup, ...] = DENSE,
    sparse: tuple[SparseGroup, ...] = SPARSE,
    shuffle: bool = True,
    rows_a_file: int = 120,
) -> DatasetManifest:
    """Three files of rows, in folder/day_*.parquet, prepared to folder/data."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"day_{day}.parquet" for day in range(3)]
    for day, path in enumerate(paths):
        pq.write_table(_log(day, rows_a_file), path)
    config = DataConfig(
        source=SourceConfig(format="parquet"),
        label=Label(column="clicked", positive=("1",), negative=("0",)),
        dense=dense,
        sparse=sparse,
        split=split,
        shuffle=shuffle,
        seed=1,
    )
    return prepare(paths, config, folder / "data", memory_bytes=2**30)


def _log(day: int, num_rows: int) -> pa.Table:
    draw = random.Random(day)
    rows = range(num_rows)
    seen = [[draw.randrange(1, 12 + 4 * day) for _ in range(draw.randrange(5))] for _ in rows]
    price = [
        None if draw.random() < 0.2 else round(draw.lognormvariate(2 + day, 1), 2) for _ in rows
    ]
    word = [draw.choice(WORDS[day // 2 :]) for _ in rows]
    dwell = [[draw.random() for _ in bag] for bag in seen]
    return pa.table(
        {
            "clicked": pa.array([int(draw.random() < 0.2 + 0.1 * day) for _ in rows]),
            "price": pa.array(price, pa.float64()),
            "age": pa.array([draw.choice([None, 20, 30, 40, 70]) for _ in rows], pa.float64()),
            "constant": pa.array([float(day == 2 and row == 0) for row in rows]),
            "item": pa.array([int(draw.paretovariate(0.8)) for _ in rows], pa.int64()),
            "seen": pa.array(seen, pa.list_(pa.int64())),
            "dwell": pa.array(dwell, pa.list_(pa.float32())),
            "word": pa.array(word),
            "user": pa.array([draw.randrange(200) for _ in rows]),
        }
    )
