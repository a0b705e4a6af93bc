import csv
import gzip
import random
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdlrm.config import load_config
from fastdlrm.contracts.schema import Label
from fastdlrm.data.config import (
    DataConfig,
    DenseGroup,
    Holdout,
    SourceConfig,
    SparseGroup,
    SplitConfig,
)
from fastdlrm.data.infer import Inference, infer, to_toml
from fastdlrm.errors import DataError
from fastdlrm.train.recipe import Recipe
from tests.builders import shared_data
from tests.unit.data.raw_files import stage

NUM_ROWS = 400


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: DataConfig


def _read_back(config: DataConfig, folder: Path) -> DataConfig:
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
    return load_config(str(folder / "config.toml"), _Section).data


def _csv(folder: Path, columns: dict[str, list[object]], delimiter: str = ",") -> Path:
    path = folder / "log.csv"
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in rows))
    return path


def _columns(**more: list[object]) -> dict[str, list[object]]:
    """A label, a number, and what is given."""
    draw = random.Random(0)
    return {
        "label": [draw.randrange(2) for _ in range(NUM_ROWS)],
        "price": [round(draw.gauss(0, 1), 3) for _ in range(NUM_ROWS)],
        **more,
    }


def _infer(folder: Path, **more: list[object]) -> Inference:
    inference = infer(_csv(folder, _columns(**more)))
    inference.config.schema()
    return inference


def _made_of(inference: Inference) -> dict[str, str]:
    return {column.name: column.proposal for column in inference.columns}


def _draws(*choices: object, seed: int = 1) -> list[object]:
    draw = random.Random(seed)
    return [draw.choice(choices) for _ in range(NUM_ROWS)]


def test_kinds_of_columns_and_what_becomes_of_them(tmp_path: Path) -> None:
    draw = random.Random(2)
    inference = _infer(
        tmp_path,
        count=[int(draw.paretovariate(0.7)) for _ in range(NUM_ROWS)],
        grade=_draws(1, 2, 3),
        user_id=[draw.randrange(100) for _ in range(NUM_ROWS)],
        city=_draws("Ulm", "Bonn", "", "NA"),
        page=[f"{draw.randrange(50) << 25:08x}" for _ in range(NUM_ROWS)],
        tags=["|".join(draw.sample("abcd", draw.randrange(4))) for _ in range(NUM_ROWS)],
    )
    assert _made_of(inference) == {
        "label": "label",
        "price": "dense (standardize), sparse (32 quantiles)",
        "count": "dense (log1p), sparse (32 quantiles)",
        "grade": "dense (standardize), sparse (int)",
        "user_id": "sparse (int)",
        "city": "sparse (string)",
        "page": "sparse (hex)",
        "tags": "sparse bag (string)",
    }
    assert inference.warnings == ()
    assert inference.num_rows == NUM_ROWS
    assert inference.config == DataConfig(
        source=SourceConfig(format="csv", header=True, missing=("", "NA")),
        label=Label(column="label", positive=("1",), negative=("0",)),
        dense=(
            DenseGroup(columns=("price", "grade"), transform="standardize"),
            DenseGroup(columns=("count",), transform="log1p"),
        ),
        sparse=(
            SparseGroup(
                columns=("price", "count"),
                name="{column}_bucket",
                key="quantile",
                num_quantiles=32,
            ),
            SparseGroup(columns=("grade",), name="{column}_value", key="int"),
            SparseGroup(columns=("user_id",), key="int"),
            SparseGroup(columns=("city",)),
            SparseGroup(columns=("page",), key="hex"),
            SparseGroup(columns=("tags",), bag=True, separator="|"),
        ),
        split=SplitConfig(
            validation=Holdout(by="hash", amount=0.1), test=Holdout(by="hash", amount=0.1)
        ),
        shuffle=True,
        seed=1,
    )


def test_statistics(tmp_path: Path) -> None:
    columns = {"label": [0, 1] * 3, "n": [5, 1, "", 3, 3, ""], "t": ["b", "a", "b", "", "b", "a"]}
    _, number, text = infer(_csv(tmp_path, columns)).columns
    assert (number.kind, number.missing_share, number.num_distinct) == ("integer", 1 / 3, 3)
    assert (number.minimum, number.maximum, number.mean) == (1.0, 5.0, 3.0)
    assert (text.kind, text.missing_share, text.num_distinct) == ("text", 1 / 6, 2)
    assert (text.top, text.minimum, text.mean) == ((("b", 3), ("a", 2)), None, None)


def test_the_proposal_reads_the_file(tmp_path: Path) -> None:
    path = _csv(tmp_path, _columns(city=_draws("Ulm", "Bonn"), tags=_draws("a|b", "c", "")))
    config = infer(path).config
    staged = stage(path, None, config.source, config.schema())
    assert staged.input.num_rows == NUM_ROWS


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|", "::", "||", " "])
@pytest.mark.parametrize("zipped", [False, True])
def test_layouts(tmp_path: Path, delimiter: str, zipped: bool) -> None:
    path = _csv(tmp_path, _columns(city=_draws("Ulm", "Bonn")), delimiter)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    source = infer(path).config.source
    assert source == SourceConfig(
        format="csv", delimiter=delimiter, quote="" if delimiter == "\t" else '"', header=True
    )


def test_a_headerless_file_has_its_columns_numbered(tmp_path: Path) -> None:
    path = _csv(tmp_path, _columns(city=_draws("Ulm", "Bonn", "Kiel")))
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    config = infer(path).config
    assert config.source.columns == ("column_1", "column_2", "column_3")
    assert config.label == Label(column="column_1", positive=("1",), negative=("0",))


def test_a_header_over_text_alone(tmp_path: Path) -> None:
    path = _csv(tmp_path, {"city": _draws("Ulm", "Bonn", "Kiel"), "click": _draws("yes", "no")})
    config = infer(path).config
    assert config.source.header
    assert config.label == Label(column="click", positive=("yes",), negative=("no",))


def test_a_quoted_tsv(tmp_path: Path) -> None:
    path = _csv(tmp_path, {"label": _draws(0, 1), "t": _draws('"a\tb"', "c")}, "\t")
    assert infer(path).config.source.quote == '"'


def test_malformed_rows_are_counted(tmp_path: Path) -> None:
    path = _csv(tmp_path, _columns(city=_draws("Ulm", "Bonn")))
    path.write_bytes(path.read_bytes() + b"1,2\n1\n")
    inference = infer(path)
    assert inference.num_rows == NUM_ROWS
    (warning,) = inference.warnings
    assert warning.startswith("2 malformed rows, the first in line 402: 2 fields, 3 are expected")


def test_line_breaks_within_quotes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "first\nsecond", "note"])
        notes = ("one\ntwo", "a,b\r\nc", 'say ""hi""\n\n', "plain")
        writer.writerows([i % 2, i, notes[i % 4]] for i in range(NUM_ROWS))
    inference = infer(path)
    assert inference.config.source.header
    assert [column.name for column in inference.columns] == ["label", "first\nsecond", "note"]
    assert (inference.num_rows, inference.columns[2].num_distinct) == (NUM_ROWS, 4)


def test_a_quote_within_fields_hides_no_lines(tmp_path: Path) -> None:
    """Inches: the quotes of two lines enclose no text."""
    sizes = [f'{i % 3}" tv' for i in range(NUM_ROWS)]
    inference = _infer(tmp_path, size=sizes)
    assert [column.name for column in inference.columns] == ["label", "price", "size"]
    assert inference.num_rows == NUM_ROWS


def test_the_sample_is_of_the_first_rows(tmp_path: Path) -> None:
    inference = infer(_csv(tmp_path, _columns()), sample_rows=50)
    assert inference.num_rows == 50


@pytest.mark.parametrize(
    ("name", "values", "positive", "warnings"),
    [
        ("click", (0, 1), "1", []),
        ("Clicked", ("True", "False"), "True", []),
        ("target", (-1, 1), "1", []),
        ("y", ("bad", "no"), "bad", []),
        ("y", ("a", "a", "a", "b"), "b", ["label 'y': of its two values the rarer, 'b', was ta"]),
        (
            "rating",
            (1, 2, 3, 4, 5),
            "5",
            ["label 'rating': of its 5 values '5' alone was taken as"],
        ),
        ("y", (1,), "1", ["label 'y': '1' in every row; nothing can be learnt from it"]),
        ("y", (7,), "1", ["label 'y': '7' in every row; nothing can be learnt from it"]),
        ("y", (0, 1, ""), "1", ["label 'y': missing in "]),
    ],
)
def test_labels_by_name(
    tmp_path: Path, name: str, values: tuple[object, ...], positive: str, warnings: list[str]
) -> None:
    columns = {"x": _columns()["price"], name: _draws(*values), "z": _draws("a", "b", seed=3)}
    inference = infer(_csv(tmp_path, columns))
    assert inference.config.label.column == name
    assert inference.config.label.positive == (positive,)
    assert positive not in inference.config.label.negative
    assert len(inference.warnings) == len(warnings)
    for found, expected in zip(inference.warnings, warnings, strict=True):
        assert found.startswith(expected)


@pytest.mark.parametrize(
    ("columns", "label", "positive"),
    [
        ({"a": ("x", "y"), "b": (0, 1), "c": ("u", "v", "w")}, "b", "1"),
        ({"a": (0, 1), "b": (0, 1), "c": (0, 1)}, "c", "1"),
        ({"a": (0, 1), "b": (0, 1), "c": (0, 2)}, "a", "1"),
        ({"a": ("m", "f"), "b": (1, 2, 3), "c": ("<=50K", "<=50K", ">50K")}, "c", ">50K"),
    ],
)
def test_labels_by_their_values(
    tmp_path: Path, columns: dict[str, tuple[object, ...]], label: str, positive: str
) -> None:
    drawn = {name: _draws(*v, seed=i) for i, (name, v) in enumerate(columns.items())}
    inference = infer(_csv(tmp_path, drawn))
    assert inference.config.label.column == label
    assert inference.config.label.positive == (positive,)
    message = f"no column is named like a label: {label!r}, which has two values, was taken; "
    assert inference.warnings[0].startswith(message)


def test_no_label(tmp_path: Path) -> None:
    columns = {"x": _columns()["price"], "label": list(range(NUM_ROWS))}
    inference = infer(_csv(tmp_path, columns))
    assert "label 'label': 400 values are too many for a label" in inference.warnings
    assert "no column can be the label; set data.label by hand" in inference.warnings
    assert inference.config.label.column == ""


def test_a_rare_label(tmp_path: Path) -> None:
    rows = 5000
    columns = {"label": [1] + [0] * (rows - 1), "x": list(range(rows, 0, -1))}
    warnings = infer(_csv(tmp_path, columns)).warnings
    assert warnings[0] == ("label 'label': 0.0200% of the rows are positive; metrics will be noisy")


def test_columns_left_out(tmp_path: Path) -> None:
    label = _columns()["label"]
    start = datetime(2024, 2, 28)
    made_of = _made_of(
        _infer(
            tmp_path,
            same=["x"] * NUM_ROWS,
            nothing=[""] * NUM_ROWS,
            row=list(range(NUM_ROWS)),
            session=[f"s{i}" for i in range(NUM_ROWS)],
            copy=["yes" if y else "no" for y in label],
            bought_at=["7" if y else "" for y in label],
            delay=[random.Random(i).random() + 2 * y for i, y in enumerate(label)],
            at=[start + timedelta(hours=i) for i in range(NUM_ROWS)],
            timestamp=[1.7e9 + i / 3 for i in range(NUM_ROWS)],
        )
    )
    row_number = "left out: another value in every row, as a row number"
    leak = "left out: it gives the label of every row away"
    assert made_of == {
        "label": "label",
        "price": "dense (standardize), sparse (32 quantiles)",
        "same": "left out: the same value in every row",
        "nothing": "left out: all is missing",
        "row": row_number,
        "session": row_number,
        "copy": leak,
        "bought_at": leak,
        "delay": leak,
        "at": "time, orders the split",
        "timestamp": "left out: a time; 'at' already orders the rows",
    }


def test_a_time_orders_the_split(tmp_path: Path) -> None:
    stamps = [1_700_000_000 + i * 60 for i in range(NUM_ROWS)]
    by_time = Holdout(by="time", amount=0.1, column="ts")
    inference = _infer(tmp_path, ts=stamps)
    assert inference.config.split == SplitConfig(validation=by_time, test=by_time)
    gaps = [stamp if i % 2 else "" for i, stamp in enumerate(stamps)]
    assert _made_of(_infer(tmp_path, ts=gaps))["ts"] == "left out: a time that some rows lack"


def test_columns_to_look_at(tmp_path: Path) -> None:
    inference = _infer(
        tmp_path,
        mixed=["unknown" if i % 50 == 0 else i % 90 for i in range(NUM_ROWS)],
        sparse=[i % 7 if i % 50 == 0 else "" for i in range(NUM_ROWS)],
    )
    assert inference.warnings == (
        "column 'mixed' is text, though 98.0% of its values are numbers; if the others mean "
        "missing, add them to data.source.missing",
        "column 'sparse': 98.0% is missing",
    )


def test_names_that_are_taken(tmp_path: Path) -> None:
    """price_bucket is a column, so that the number gets no sparse twin of that name."""
    made_of = _made_of(_infer(tmp_path, price_bucket=_draws("low", "high", "mid")))
    assert made_of["price"] == "dense (standardize)"


def test_parquet(tmp_path: Path) -> None:
    draw = random.Random(3)
    ids = [[draw.randrange(9) for _ in range(draw.randrange(4))] for _ in range(NUM_ROWS)]
    table = pa.table(
        {
            "clicked": pa.array([bool(x) for x in _draws(0, 1)]),
            "items": ids,
            "item_weights": [[draw.random() for _ in bag] for bag in ids],
            "loose": [[draw.random()] for _ in ids],
            "nested": [{"a": i} for i in range(NUM_ROWS)],
            "amount": pa.array([float("nan") if i % 3 else i % 5 for i in range(NUM_ROWS)]),
            "day": pa.array([datetime(2024, 1, 1) + timedelta(i) for i in range(NUM_ROWS)]),
        }
    )
    path = tmp_path / "log.parquet"
    pq.write_table(table, path)
    inference = infer(path)
    config = inference.config
    assert _made_of(inference) == {
        "clicked": "label",
        "items": "sparse bag (int)",
        "item_weights": "weights of a bag",
        "loose": "left out: lists of type number that weigh no other column",
        "nested": "left out: values of type struct<a: int64> cannot be read",
        "amount": "dense (standardize), sparse (int)",
        "day": "time, orders the split",
    }
    assert config.source == SourceConfig(format="parquet")
    assert config.label == Label(column="clicked", positive=("true",), negative=("false",))
    assert config.sparse[0] == SparseGroup(
        columns=("items",), key="int", bag=True, weight_column="item_weights"
    )
    assert _read_back(config, tmp_path) == config
    staged = stage(path, None, config.source, config.schema(), time_column="day")
    assert staged.input.num_rows == NUM_ROWS


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/log: no such file; correct the path"):
        infer(tmp_path / "log")
    path = tmp_path / "log"
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match=r"^log: no rows; name a file that has some$"):
        infer(path)
    path.write_bytes(b"once upon a time\nthere was\na file\n")
    with pytest.raises(
        DataError, match=r"^log: none of '\\t', ',', .* cuts its lines into equally"
    ):
        infer(path)
    path.write_bytes(b'"a"b,1\n"a"b,2\n')
    with pytest.raises(
        DataError, match=r"^log: none of its rows can be read; the first, line 1: text follows a cl"
    ):
        infer(path)
    path.write_text("label,x\n" + "1,2\n" * 20, encoding="utf-16")
    with pytest.raises(
        DataError, match=r"the first, line 1: a NUL byte; convert it to delimited UTF-8 text or Pa"
    ):
        infer(path)
    pq.write_table(pa.table({"label": pa.array([], pa.int8())}), path)
    with pytest.raises(DataError, match=r"^log: no rows; name a file that has some$"):
        infer(path)


def test_toml_is_read_back_as_it_was(tmp_path: Path) -> None:
    nasty = tuple(f'"{c}\\ é漢😀' for c in map(chr, [*range(1, 33), 0x7F, 0x85, 0x2028]))
    config = DataConfig(
        source=SourceConfig(format="csv", delimiter="\t", quote="", columns=nasty),
        label=Label(column="y", positive=("1", "true"), negative=("0",)),
        dense=(),
        sparse=(SparseGroup(columns=nasty, key="hex", max_rows=5, min_count=3),),
        split=SplitConfig(
            validation=Holdout(by="none"), test=Holdout(by="time", amount=0.25, column="t")
        ),
        shuffle=False,
        seed=7,
    )
    assert _read_back(config, tmp_path) == config
    assert max(map(len, to_toml(config).splitlines())) <= 100


@pytest.mark.parametrize("preset", ["criteo-generated", "adult"])
def test_presets_are_read_back_as_they_were(tmp_path: Path, preset: str) -> None:
    config = load_config(preset, Recipe).data
    assert _read_back(config, tmp_path) == config


def test_the_real_adult_data() -> None:
    inference = infer(shared_data() / "adult" / "adult.data.gz")
    config = inference.config
    assert inference.num_rows == 32_561
    assert config.source.missing == ("", "?")
    assert config.label == Label(column="column_15", positive=(">50K",), negative=("<=50K",))
    numbers = [name for group in config.dense for name in group.columns]
    assert sorted(numbers, key=lambda name: int(name[7:])) == [
        f"column_{i}" for i in (1, 3, 5, 11, 12, 13)
    ]


def test_the_real_criteo_sample() -> None:
    config = infer(shared_data() / "criteo_sample" / "day_0.gz", 5000).config
    assert (config.source.delimiter, config.source.quote) == ("\t", "")
    assert config.label == Label(column="column_1", positive=("1",), negative=("0",))
    hexadecimal = [n for group in config.sparse if group.key == "hex" for n in group.columns]
    assert sorted(hexadecimal) == sorted(f"column_{i}" for i in range(15, 41))
