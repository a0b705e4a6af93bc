"""Raw rows of real logs, as an exported model keeps them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdlrm.contracts.exported import SCORE
from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.config import SourceConfig
from fastdlrm.errors import DataError
from fastdlrm.export.logged_rows import logged_rows
from fastdlrm.export.model import ExportedModel
from fastdlrm.export.write import GOLDEN_ROWS, ExportOptions, export

PARQUET = SourceConfig(format="parquet")


def table(name):
    """A table of hashed ids."""
    return Table(name=name, encoding="hash", min_count=1, max_rows=10)


SEEN = SparseFeature(
    name="seen", column="seen", table="t", key="int", bag=True, weight_column="dwell"
)
TAGS = SparseFeature(name="tags", column="tags", table="t", key="int", bag=True, separator="|")
SCHEMA = Schema(
    label=Label(column="clicked", positive=("1",), negative=("0",)),
    dense=(DenseFeature(name="price", column="price", transform="log1p", fill=0.0),),
    sparse=(
        SparseFeature(name="item", column="item", table="t", key="int"),
        SparseFeature(name="word", column="word", table="w", key="string"),
        SEEN,
        TAGS,
    ),
    tables=(table("t"), table("w")),
)


def parquet(path, **columns):
    """A log of two rows, with other columns where they are given."""
    plain = {
        "clicked": [1, 0],
        "price": pa.array([1.5, None], pa.float64()),
        "item": pa.array([7.0, float("nan")], pa.float64()),
        "word": ["tea", None],
        "seen": pa.array([[1, None], None], pa.list_(pa.int64())),
        "dwell": pa.array([[0.5, 1.0], None], pa.list_(pa.float32())),
        "tags": pa.array([[3, 4], []], pa.list_(pa.int64())),
    }
    pq.write_table(pa.table(plain | columns), path)
    return path


def test_values_of_every_type_become_the_text_of_a_request(tmp_path):
    rows = logged_rows([parquet(tmp_path / "log")], PARQUET, SCHEMA, 2, seed=0)
    assert "clicked" not in rows.schema.names
    by_item = {row["item"]: row for row in rows.to_pylist()}
    assert by_item["7"] == {
        "price": "1.5", "item": "7", "word": "tea", "seen": ["1", ""], "dwell": ["0.5", "1"],
        "tags": "3|4",
    }  # fmt: skip
    assert by_item[None] == {
        "price": None, "item": None, "word": None, "seen": [], "dwell": [], "tags": "",
    }  # fmt: skip


def test_a_missing_text_is_one_that_requests_can_say(tmp_path):
    """Where the empty text is a value, it cannot stand for a missing one."""
    source = SourceConfig(format="parquet", missing=("?",))
    rows = logged_rows([parquet(tmp_path / "log")], source, SCHEMA, 2, seed=0)
    assert sorted(rows.column("word").to_pylist()) == ["?", "tea"]


def test_wrong_rows_are_told(tmp_path):
    path = parquet(tmp_path / "log")
    bad = parquet(tmp_path / "bad", item=["1", "x"])
    with pytest.raises(DataError, match=r"bad row 2: column 'item': 'x' is not a whole number"):
        logged_rows([path, bad], PARQUET, SCHEMA, 2, seed=0)
    pq.write_table(pq.read_table(path).slice(0, 0), tmp_path / "none")
    with pytest.raises(DataError, match=r"none: no rows; name other files"):
        logged_rows([tmp_path / "none"], PARQUET, SCHEMA, 2, seed=0)


def test_real_rows_join_the_golden_ones(source, trained, tmp_path):
    run, _ = trained
    log = run.folder.parent / "log" / "day_0.tsv"
    rows = logged_rows([log], source.source, source.schema, 200, seed=3)
    assert rows.num_rows == 200
    assert rows.equals(logged_rows([log], source.source, source.schema, 200, seed=3))
    export(source, ExportOptions(name="ctr"), tmp_path / "model", requests=rows)
    model = ExportedModel.load(tmp_path / "model")
    golden = model.golden()
    assert golden.num_rows == 2 * GOLDEN_ROWS
    real = golden.slice(GOLDEN_ROWS).drop_columns([SCORE])
    assert real.select(rows.schema.names).equals(rows.slice(0, GOLDEN_ROWS))
    assert model.warmup_rows().num_rows == 200 - GOLDEN_ROWS
