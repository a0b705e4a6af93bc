import gzip
import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdlrm.config import load_config
from fastdlrm.contracts.schema import SparseFeature
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.source import (
    ROW_GROUP_ROWS,
    StagedFile,
    expand_inputs,
    stage_file,
)
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.train.recipe import Recipe
from tests.builders import shared_data
from tests.unit.data.raw_files import (
    CSV,
    PARQUET,
    SCHEMA,
    TSV,
    rows_of,
    schema_of,
    sparse,
    stage,
)


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_glob_expands_in_natural_order(tmp_path: Path) -> None:
    _touch(tmp_path, "day_10", "day_2", "day_1", "other", "sub/day_3")
    found = expand_inputs([str(tmp_path / "day_*"), str(tmp_path / "other")])
    assert [path.name for path in found] == ["day_1", "day_2", "day_10", "other"]
    assert expand_inputs([str(tmp_path / "**/day_3")]) == [tmp_path / "sub/day_3"]


def test_a_file_named_like_a_glob_is_that_file(tmp_path: Path) -> None:
    _touch(tmp_path, "day[1]", "day1")
    assert expand_inputs([str(tmp_path / "day[1]")]) == [tmp_path / "day[1]"]


def test_inputs_that_are_no_files(tmp_path: Path) -> None:
    _touch(tmp_path, "a", "sub/b")
    with pytest.raises(DataError, match=r"/c: no such file; correct the path"):
        expand_inputs([str(tmp_path / "c")])
    with pytest.raises(DataError, match=r"/\*\.gz' matches no file; correct the pattern"):
        expand_inputs([str(tmp_path / "*.gz")])
    with pytest.raises(DataError, match=r"/sub: a folder; name its files, e\.g\. '.*/sub/\*'"):
        expand_inputs([str(tmp_path / "*")])
    with pytest.raises(DataError, match=r"/a: named twice; name each file once"):
        expand_inputs([str(tmp_path / "a"), str(tmp_path / "sub" / ".." / "a")])
    with pytest.raises(DataError, match=r"/dev/null: not a regular file; copy its content to one"):
        expand_inputs(["/dev/null"])


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    """The manifest and the scores could not name the file."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/day_\xff"))
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"^'day_\\udcff': the name is not UTF-8, so no artifact"):
        expand_inputs([str(path)])


def _random_log(seed: int, num_rows: int) -> list[list[str]]:
    draw = random.Random(seed)

    def field(column: int) -> str:
        if column == 0:
            return draw.choice("01")
        if draw.random() < 0.2:
            return ""
        if column < 14:
            return str(draw.randrange(-3, 10 ** draw.randrange(1, 8)))
        return f"{draw.getrandbits(draw.choice([4, 32, 64])):0{draw.choice([1, 8, 16])}x}"

    return [[field(column) for column in range(40)] for _ in range(num_rows)]


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_random_criteo_log_reads_back_as_python_parses_it(
    tmp_path: Path, line_break: str
) -> None:
    data = load_config("criteo-generated", Recipe).data
    log = _random_log(seed=5, num_rows=3000)
    content = line_break.join("\t".join(row) for row in log).encode()
    staged = stage(tmp_path / "day_0", content, data.source, data.schema())
    rows = rows_of(staged)
    for column, name in enumerate(data.source.columns):
        if column == 0:
            assert rows["__label"] == [int(row[0]) for row in log]
        elif column < 14:
            numbers = [float(row[column]) if row[column] else None for row in log]
            assert rows[f"d.{name}"] == numbers
        else:
            ids = [int(row[column], 16) if row[column] else None for row in log]
            assert rows[f"s.{name}"] == ids
    assert staged.input.num_positives == sum(row[0] == "1" for row in log)
    assert staged.input.num_rows == 3000
    assert list(rows) == pq.read_schema(staged.path).names
    assert len(rows) == 40


def test_ids_from_2_to_the_31_are_kept(tmp_path: Path) -> None:
    """The reference's preprocessing overflows on them."""
    ids = [2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1]
    content = "".join(f"1\t1\t{i:x}\t{i >> 1}\n" for i in ids).encode()
    rows = rows_of(stage(tmp_path / "day_0", content))
    assert rows["s.C1"] == ids
    assert rows["s.U"] == [i >> 1 for i in ids]


def test_the_real_criteo_sample(tmp_path: Path) -> None:
    data = load_config("criteo-generated", Recipe).data
    path = shared_data() / "criteo_sample" / "day_3.gz"
    out = tmp_path / "staged.parquet"
    staged = stage_file(path, data.source, data.schema(), out)
    rows = rows_of(staged)
    text = gzip.decompress(path.read_bytes()).decode()
    log = [line.split("\t") for line in text.splitlines()]
    assert rows["__label"] == [int(row[0]) for row in log]
    assert rows["d.I4"] == [float(row[4]) if row[4] else None for row in log]
    assert rows["s.C26"] == [int(row[39], 16) if row[39] else None for row in log]
    assert staged.input.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert staged.input.size_bytes == path.stat().st_size
    assert (staged.input.name, staged.input.num_rows) == ("day_3.gz", 10_000)


def test_the_real_adult_data(tmp_path: Path) -> None:
    columns = (
        *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status"),
        *("occupation", "relationship", "race", "sex", "capital_gain", "capital_loss"),
        *("hours_per_week", "native_country", "income"),
    )
    source = SourceConfig(format="csv", columns=columns, missing=("", "?"))
    label = {"column": "income", "positive": (">50K",), "negative": ("<=50K",)}
    base = schema_of(sparse("workclass", "string"), dense=("age", "capital_gain"))
    schema = type(base)(
        label=type(base.label)(**label), dense=base.dense, sparse=base.sparse, tables=base.tables
    )
    raw = gzip.decompress((shared_data() / "adult" / "adult.data.gz").read_bytes())
    staged = stage(tmp_path / "adult.data", raw, source, schema)
    rows = rows_of(staged)
    log = [line.split(", ") for line in raw.decode().split("\n") if line]
    assert len(log) == staged.input.num_rows == 32_561
    assert staged.input.num_positives == raw.count(b">50K") == 7_841
    assert rows["d.age"] == [float(row[0]) for row in log]
    assert rows["s.workclass"] == [None if row[1] == "?" else row[1] for row in log]


def test_rows_stay_in_order_across_row_groups(tmp_path: Path) -> None:
    num_rows = 2 * ROW_GROUP_ROWS + 7
    lines = (f"{i % 2}\t{i}\t{i:x}\t{-i}\n" for i in range(num_rows))
    staged = stage(tmp_path / "log.gz", gzip.compress("".join(lines).encode(), 1))
    file = pq.ParquetFile(staged.path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 7]
    assert file.read(["s.U"]).column(0).to_pylist() == [-i for i in range(num_rows)]
    assert staged.input.num_positives == num_rows // 2
    file.close()


def test_files_are_staged_by_threads_alike(tmp_path: Path) -> None:
    log = "".join(f"1\t{i}\t{i:x}\t{i}\n" for i in range(5000)).encode()
    paths = [tmp_path / f"{i}.tsv" for i in range(4)]
    for path in paths:
        path.write_bytes(log)

    def staged_beside(path: Path) -> StagedFile:
        out = path.with_suffix(".parquet")
        return stage_file(path, TSV, SCHEMA, out)

    with ThreadPoolExecutor(4) as pool:
        staged = list(pool.map(staged_beside, paths))
    assert len({file.path.read_bytes() for file in staged}) == 1


def test_one_column_may_feed_several_features(tmp_path: Path) -> None:
    bucket = SparseFeature(name="b", column="x", table="b", key="quantile", num_quantiles=4)
    exact = SparseFeature(name="e", column="x", table="e", key="int")
    schema = schema_of(bucket, exact, dense=("x",))
    rows = rows_of(stage(tmp_path / "log", b"label,x\n1,3\n0,\n", CSV, schema))
    assert rows == {"__label": [1, 0], "d.x": [3.0, None], "s.b": [3.0, None], "s.e": [3, None]}


def test_without_labels(tmp_path: Path) -> None:
    for content in (b"5\tff\t7\n", b"1\t5\tff\t7\n", b"anything\t5\tff\t7\n"):
        staged = stage(tmp_path / "log", content, labelled=False)
        assert rows_of(staged) == {"d.I1": [5.0], "s.C1": [255], "s.U": [7]}
        assert staged.input.num_positives is None
    rows = rows_of(stage(tmp_path / "log", b"U,C1,I1\n7,ff,5\n", CSV, labelled=False))
    assert rows == {"d.I1": [5.0], "s.C1": [255], "s.U": [7]}


def test_a_label_may_be_an_empty_text(tmp_path: Path) -> None:
    base = schema_of(dense=("x",))
    label = type(base.label)(column="label", positive=("buy",), negative=("",))
    schema = type(base)(label=label, dense=base.dense, sparse=(), tables=())
    assert rows_of(stage(tmp_path / "log", b"label,x\nbuy,1\n,2\n", CSV, schema))["__label"] == [
        1,
        0,
    ]


BAGS = schema_of(
    sparse("tags", "string", bag=True, separator="|"),
    sparse("items", "hex", bag=True, separator="|", weight_column="scores"),
)


def test_bags_of_text(tmp_path: Path) -> None:
    content = b"label,tags,items,scores\n1, a | b||NA|c,1|ff,0.5|2\n0,,,\n1,NA,||a,9||1e-3\n"
    source = SourceConfig(format="csv", header=True, missing=("", "NA"))
    staged = stage(tmp_path / "log", content, source, BAGS)
    assert rows_of(staged) == {
        "__label": [1, 0, 1],
        "s.tags": [["a", "b", "c"], [], []],
        "s.items": [[1, 255], [], [10]],
        "w.items": [[0.5, 2.0], [], [pytest.approx(0.001)]],
    }
    columns = pq.read_schema(staged.path)
    assert columns.field("s.items").type.value_type == pa.uint64()
    assert columns.field("w.items").type.value_type == pa.float32()


def test_bad_bags(tmp_path: Path) -> None:
    rows = ["1,a,1|2,1", "1,a,1|x,1|2", "1,a,1,nan", "1,a,1,", "1,a,1|,0.5|heavy", "0,a,1,2"]
    content = "\n".join(["label,tags,items,scores", *rows]).encode()
    staged = stage(tmp_path / "log", content, CSV, BAGS, on_bad_row="skip")
    hint = "(texts for missing values go into data.source.missing)"
    assert [(row.line, row.reason) for row in staged.bad_rows] == [
        (2, "column 'scores': 1 weights for 2 ids"),
        (3, "column 'items': 'x' is not hexadecimal (digits 0-9 and a-f)"),
        (4, "column 'scores': no weight for the id '1'"),
        (5, "column 'scores': 0 weights for 1 ids"),
        (6, f"column 'scores': 'heavy' is not a number {hint}"),
    ]
    assert rows_of(staged)["s.items"] == [[1]]


def test_a_bag_of_text_needs_a_separator(tmp_path: Path) -> None:
    schema = schema_of(sparse("tags", "string", bag=True))
    with pytest.raises(ConfigError, match=r"'tags' is a bag, and log holds column 'tags' as text;"):
        stage(tmp_path / "log", b"label,tags\n1,a\n", CSV, schema)


def test_times(tmp_path: Path) -> None:
    schema = schema_of(dense=("x",))
    content = b"label,x,at\n1,1,2024-02-29 00:00:01\n1,1,\n0,1,1970-01-01\n0,1,noon\n"
    staged = stage(tmp_path / "log", content, CSV, schema, on_bad_row="skip", time_column="at")
    assert rows_of(staged)["__time"] == [1_709_164_801_000_000, 0]
    assert [row.reason for row in staged.bad_rows] == [
        "column 'at': is missing; a split by time needs it",
        "column 'at': 'noon' is not written like the first (timestamp[us])",
    ]
    rows = rows_of(stage(tmp_path / "log", b"label,x,at\n1,1,5\n", CSV, schema, time_column="at"))
    assert rows["__time"] == [5.0]


def _parquet(folder: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return folder / "log.parquet"


def test_parquet_columns_are_taken_by_name(tmp_path: Path) -> None:
    path = _parquet(
        tmp_path,
        extra=pa.array([1, 2, 3]),
        U=pa.array([2**62, None, -1]),
        I1=pa.array([1, None, float("nan")], pa.float32()),
        C1=pa.array([" ff ", "", None]),
        label=pa.array([True, False, True]),
    )
    assert rows_of(stage(path, None, PARQUET)) == {
        "__label": [1, 0, 1],
        "d.I1": [1.0, None, None],
        "s.C1": [255, None, None],
        "s.U": [2**62, None, -1],
    }


def test_a_parquet_label_is_compared_as_text(tmp_path: Path) -> None:
    for label in (pa.array([1.0, 0.0]), pa.array([1, 0], pa.int8()), pa.array(["1", "0"])):
        path = _parquet(tmp_path, label=label, x=pa.array([1, 2]))
        assert rows_of(stage(path, None, PARQUET, schema_of(dense=("x",))))["__label"] == [1, 0]


def test_parquet_lists_are_bags(tmp_path: Path) -> None:
    schema = schema_of(
        sparse("tags", "string", bag=True), sparse("items", "int", bag=True, weight_column="scores")
    )
    path = _parquet(
        tmp_path,
        label=pa.array([1, 0, 1]),
        tags=pa.array([["a", None, ""], [], None]),
        items=pa.array([[1, 2], None, [3, None]], pa.list_(pa.int32())),
        scores=pa.array([[0.5, 1.5], [], [2.0, 3.0]]),
    )
    assert rows_of(stage(path, None, PARQUET, schema)) == {
        "__label": [1, 0, 1],
        "s.tags": [["a"], [], []],
        "s.items": [[1, 2], [], [3]],
        "w.items": [[0.5, 1.5], [], [2.0]],
    }


def test_parquet_texts_of_any_type(tmp_path: Path) -> None:
    names = ("category", "day", "raw", "large", "clock")
    schema = schema_of(*(sparse(name, "string") for name in names), BAGS.sparse[0])
    tags = pa.array([[" a ", None], None], pa.large_list(pa.large_string()))
    path = _parquet(
        tmp_path,
        label=pa.array([1, 0]),
        category=pa.array([" Ulm", None], pa.large_string()).dictionary_encode(),
        day=pa.array([date(2024, 2, 29), date(1970, 1, 1)]),
        raw=pa.array([b"ab", None]),
        large=pa.array(["", "x"], pa.large_string()),
        clock=pa.array([3600, None], pa.time32("s")),
        tags=tags,
    )
    staged = stage(path, None, PARQUET, schema, time_column="day")
    assert rows_of(staged) == {
        "__label": [1, 0],
        "s.category": ["Ulm", None],
        "s.day": ["2024-02-29", "1970-01-01"],
        "s.raw": ["ab", None],
        "s.large": [None, "x"],
        "s.clock": ["01:00:00.000", None],
        "s.tags": [["a"], []],
        "__time": [1_709_164_800_000_000, 0],
    }


def test_parquet_lists_of_one_length(tmp_path: Path) -> None:
    items = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    path = _parquet(tmp_path, label=pa.array([1, 0, 1]), items=items)
    schema = schema_of(sparse("items", "int", bag=True))
    assert rows_of(stage(path, None, PARQUET, schema))["s.items"] == [[1, 2], [], [3, 4]]


def test_many_parquet_rows_stay_in_order(tmp_path: Path) -> None:
    numbers = list(range(ROW_GROUP_ROWS + 9))
    path = tmp_path / "log.parquet"
    pq.write_table(
        pa.table({"label": [0] * len(numbers), "x": numbers}), path, row_group_size=7_000
    )
    staged = stage(path, None, PARQUET, schema_of(dense=("x",)))
    assert rows_of(staged)["d.x"] == numbers
    assert staged.input.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert staged.input.size_bytes == path.stat().st_size


def test_parquet_rows_are_counted_from_1(tmp_path: Path) -> None:
    path = _parquet(tmp_path, label=pa.array([1, 7, 1]), x=pa.array([1, 2, float("inf")]))
    schema = schema_of(dense=("x",))
    staged = stage(path, None, PARQUET, schema, on_bad_row="skip")
    assert [(row.line, row.reason) for row in staged.bad_rows] == [
        (
            2,
            "column 'label': '7' is neither positive ('1' or 'true') nor negative ('0' or 'false')",
        ),
        (3, "column 'x': 'inf' is infinite or too large"),
    ]
    with pytest.raises(DataError, match=r"^log\.parquet row 2: column 'label': '7' is neither"):
        stage(path, None, PARQUET, schema)


def test_a_number_beyond_float32_is_named_where_no_transform_makes_it_smaller(
    tmp_path: Path,
) -> None:
    path = _parquet(tmp_path, label=pa.array([1, 0]), x=pa.array([1.0, 1e39]))
    plain = schema_of(dense=("x",))
    with pytest.raises(
        DataError, match=r"^log\.parquet row 2: column 'x': '1e\+39' is infinite or"
    ):
        stage(path, None, PARQUET, plain)
    (feature,) = plain.dense
    log = msgspec.structs.replace(feature, transform="log1p")
    staged = stage(path, None, PARQUET, msgspec.structs.replace(plain, dense=(log,)))
    assert rows_of(staged)["d.x"] == [1.0, 1e39]


def test_parquet_types_that_cannot_be_read(tmp_path: Path) -> None:
    path = _parquet(tmp_path, label=pa.array([1]), x=pa.array([[1]]), n=pa.array([1]))
    with pytest.raises(
        DataError, match=r"log\.parquet: column 'x' is of type list<.*>, numbers or"
    ):
        stage(path, None, PARQUET, schema_of(dense=("x",)))
    with pytest.raises(DataError, match=r"column 'n' is of type int64, text can be read here; dec"):
        stage(path, None, PARQUET, schema_of(sparse("n", "hex")))
    with pytest.raises(DataError, match=r"column 'x' is of type list<.*>, numbers, dates or text"):
        stage(path, None, PARQUET, schema_of(dense=("n",)), time_column="x")
    with pytest.raises(
        DataError, match=r"column 'x' is of type list<.*>, plain values can be read"
    ):
        stage(path, None, PARQUET, schema_of(sparse("x", "string")))


def test_a_parquet_path_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "day=3" / "[a]*"
    folder.mkdir(parents=True)
    path = _parquet(folder, label=pa.array([1]), x=pa.array([1]))
    assert rows_of(stage(path, None, PARQUET, schema_of(dense=("x",))))["d.x"] == [1.0]
