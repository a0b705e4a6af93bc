"""The whole way from raw files to a dataset."""

import gzip
import logging
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.config import load_config
from fastdlrm.contracts.encoding import DenseStatistics
from fastdlrm.contracts.manifest import (
    DatasetManifest,
    SplitInfo,
    read_manifest,
    sha256_of,
    verify_files,
)
from fastdlrm.contracts.schema import Label
from fastdlrm.data.config import (
    DataConfig,
    DenseGroup,
    Holdout,
    SourceConfig,
    SparseGroup,
    SplitConfig,
)
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from fastdlrm.data.workers import LEAST_PROCESS_BYTES
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.train.recipe import Recipe
from tests.builders import shared_data, tiny_recipe

GIB = 2**30

SHOP = DataConfig(
    source=SourceConfig(format="csv", header=True),
    label=Label(column="bought", positive=("yes",), negative=("no",)),
    dense=(DenseGroup(columns=("price",), transform="standardize", fill=3.0),),
    sparse=(
        SparseGroup(columns=("item",), min_count=2),
        SparseGroup(columns=("seen",), bag=True, separator=" ", table="item", min_count=2),
        SparseGroup(columns=("hour",), key="int", encoding="hash", max_rows=10),
    ),
    split=SplitConfig(
        validation=Holdout(by="position", amount=1 / 6), test=Holdout(by="file", amount=1)
    ),
    shuffle=False,
    seed=1,
)
DAYS = {
    "day_0.csv": [
        "bought,price,item,seen,hour",
        "no,1,tea,tea milk,0",
        "yes,,milk,,1",
        "no,5,tea,nut,",
    ],
    "day_1.csv": ["bought,price,item,seen,hour", "yes,9,tea,milk fig,3"],
    "day_2.csv": ["bought,price,item,seen,hour", "no,3,fig,fig fig nut,4", "yes,3,,tea,5"],
}


def shop(folder: Path, days: dict[str, list[str]] = DAYS) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, lines in days.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return [folder / name for name in days]


def rows_of(folder: Path, split: str) -> list[dict[str, object]]:
    rows = []
    for path in sorted((folder / split).iterdir()):
        with pa.memory_map(str(path)) as source:
            rows += pa.ipc.open_file(source).read_all().to_pylist()
    return rows


def test_by_hand(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    manifest = prepare(
        shop(tmp_path / "log"),
        SHOP,
        tmp_path / "data",
        memory_bytes=GIB,
        progress=lambda *told: seen.append(told),
    )
    # Train is day_0: prices 1, 3 (filled), 5: mean 3, variance (4 + 0 + 4) / 3.
    statistics = manifest.encoding.dense["price"]
    assert statistics == DenseStatistics(mean=3.0, std=pytest.approx((8 / 3) ** 0.5))
    # Items and seen items of train: tea 3, milk 2, nut 1; at least 2 are asked for: 5 of 6 ids.
    item, hour = manifest.encoding.tables["item"], manifest.encoding.tables["hour"]
    assert (item.num_embeddings, item.coverage) == (4, pytest.approx(5 / 6))
    assert (hour.num_embeddings, hour.vocabulary) == (10, "")
    tea, milk, unknown, missing = 2, 3, 0, 1
    train = rows_of(tmp_path / "data", "train")
    assert [row["label"] for row in train] == [0, 1, 0]
    assert [row["price"] for row in train] == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5])
    assert [row["item"] for row in train] == [tea, milk, tea]
    assert [row["seen"] for row in train] == [[tea, milk], [], [unknown]]
    assert train[2]["hour"] == missing
    assert all(2 <= row["hour"] < 10 for row in train[:2])
    validation, test = (rows_of(tmp_path / "data", name) for name in ("validation", "test"))
    assert [(row["item"], row["seen"]) for row in validation] == [(tea, [milk, unknown])]
    assert [row["item"] for row in test] == [unknown, missing]
    assert [row["seen"] for row in test] == [[unknown] * 3, [tea]]
    assert manifest.splits == {
        "train": SplitInfo(num_rows=3, num_positives=1),
        "validation": SplitInfo(num_rows=1, num_positives=1),
        "test": SplitInfo(num_rows=2, num_positives=1),
    }
    assert [(f.num_rows, f.num_positives) for f in manifest.inputs] == [(3, 1), (1, 1), (2, 1)]
    steps = ["stage", "split", "fit", "count", "merge", "encode", "write"]
    assert list(dict.fromkeys(step for step, _, _ in seen)) == steps
    for name in steps:
        done = [done for step, done, _ in seen if step == name]
        (total,) = {total for step, _, total in seen if step == name}
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)
    sizes = [(tmp_path / "log" / day).stat().st_size for day in DAYS]
    assert seen[0] == ("stage", 0, sum(sizes))


def test_the_manifest_tells_all(tmp_path: Path) -> None:
    inputs = shop(tmp_path / "log")
    manifest = prepare(inputs, SHOP, tmp_path / "data", memory_bytes=GIB)
    written = read_manifest(tmp_path / "data", DatasetManifest)
    assert msgspec.json.encode(written) == msgspec.json.encode(manifest)
    verify_files(tmp_path / "data", manifest, deep=True)
    listed = {tmp_path / "data" / name for name in [*manifest.files, "manifest.json"]}
    assert listed == {path for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert sorted(manifest.files) == [
        "test/part-00000.arrow",
        "train/part-00000.arrow",
        "validation/part-00000.arrow",
        "vocab/item.arrow",
    ]
    assert [file.num_rows for file in manifest.inputs] == [3, 1, 2]
    assert [file.sha256 for file in manifest.inputs] == [sha256_of(path) for path in inputs]
    assert msgspec.convert(manifest.config["data"], DataConfig) == SHOP
    assert manifest.schema == SHOP.schema()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 generated rows in 3 files."""
    folder = tmp_path_factory.mktemp("log")
    generate(folder / "log", num_rows=3000, num_files=3, gzip=True, seed=7)
    return folder / "log"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_equal_inputs_give_equal_bytes(log: Path, tmp_path: Path) -> None:
    inputs, data = expand_inputs([f"{log}/*.gz"]), tiny_recipe().data
    prepare(inputs, data, tmp_path / "a", memory_bytes=GIB, num_workers=1)
    prepare(inputs, data, tmp_path / "b", memory_bytes=LEAST_PROCESS_BYTES, num_workers=3)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    other = msgspec.structs.replace(data, seed=2)
    prepare(inputs, other, tmp_path / "c", memory_bytes=GIB)
    train = "train/part-00000.arrow"
    assert bytes_of(tmp_path / "c")[train] != bytes_of(tmp_path / "a")[train]


def test_shuffled_train_rows_are_the_same_rows(log: Path, tmp_path: Path) -> None:
    inputs, data = expand_inputs([f"{log}/*.gz"]), tiny_recipe().data
    ordered = msgspec.structs.replace(data, shuffle=False)
    for name, config in (("shuffled", data), ("ordered", ordered)):
        prepare(inputs, config, tmp_path / name, memory_bytes=GIB)
    rows = {
        name: [str(row) for row in rows_of(tmp_path / name, "train")]
        for name in ("shuffled", "ordered")
    }
    assert rows["shuffled"] != rows["ordered"]
    assert Counter(rows["shuffled"]) == Counter(rows["ordered"])
    assert rows_of(tmp_path / "shuffled", "test") == rows_of(tmp_path / "ordered", "test")


NUMBERED = msgspec.structs.replace(
    SHOP,
    dense=(DenseGroup(columns=("row",), transform="none"),),
    sparse=(
        SparseGroup(columns=("item",), min_count=2, max_rows=20),
        SparseGroup(columns=("item",), name="hashed", encoding="hash", max_rows=7),
    ),
    split=SplitConfig(
        validation=Holdout(by="hash", amount=0.2), test=Holdout(by="hash", amount=0.2)
    ),
    shuffle=True,
)
"""Rows that tell their number."""


def test_splits_share_no_row_and_no_id_is_beyond_its_table(tmp_path: Path) -> None:
    """The reference's random test rows are its train rows, and its drawn ids can exceed tables."""
    drawn = np.random.default_rng(3).zipf(1.2, 2000)
    lines = [f"{'yes' if row % 3 else 'no'},{row},{item}" for row, item in enumerate(drawn)]
    inputs = shop(tmp_path / "log", {"day.csv": ["bought,row,item", *lines]})
    manifest = prepare(inputs, NUMBERED, tmp_path / "data", memory_bytes=GIB)
    rows = {name: rows_of(tmp_path / "data", name) for name in manifest.splits}
    numbers = [row["row"] for split in rows.values() for row in split]
    assert sorted(numbers) == list(range(2000))
    assert min(map(len, rows.values())) > 300
    for table, num_embeddings in (("item", 20), ("hashed", 7)):
        assert manifest.encoding.tables[table].num_embeddings == num_embeddings
        for split in rows.values():
            assert {row[table] for row in split} <= set(range(num_embeddings))


def test_ids_from_2_to_the_31_have_rows_of_their_own(tmp_path: Path) -> None:
    """The reference's preprocessing overflows on them."""
    ids = [2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    lines = [f"{'yes' if n % 2 else 'no'},{n},{i:x}" for i in ids for n in range(2)]
    inputs = shop(tmp_path / "log", {"day.csv": ["bought,row,item", *lines]})
    sparse = (SparseGroup(columns=("item",), key="hex"),)
    nothing = Holdout(by="none")
    split = SplitConfig(validation=nothing, test=nothing)
    config = msgspec.structs.replace(NUMBERED, sparse=sparse, split=split, shuffle=False)
    prepare(inputs, config, tmp_path / "data", memory_bytes=GIB)
    found = [row["item"] for row in rows_of(tmp_path / "data", "train")]
    assert sorted(found) == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert found[::2] == found[1::2]


def test_no_value_is_stored_in_64_bits(log: Path, tmp_path: Path) -> None:
    """The reference writes numbers and ids in 64 bits, twice the disk."""
    inputs = expand_inputs([f"{log}/*.gz"])
    prepare(inputs, tiny_recipe().data, tmp_path / "data", memory_bytes=GIB)
    for path in (tmp_path / "data" / "train").iterdir():
        with pa.memory_map(str(path)) as source:
            columns = pa.ipc.open_file(source).schema
        assert {str(field.type) for field in columns} == {"uint8", "float"}


def test_bad_rows_are_an_error_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    days = dict(DAYS)
    days["day_0.csv"] = [*DAYS["day_0.csv"], "perhaps,1,tea,,0", "no,1,tea"]
    inputs = shop(tmp_path / "log", days)
    with pytest.raises(DataError, match=r"line 5: .*; correct the row, or pass --on-bad-row skip$"):
        prepare(inputs, SHOP, tmp_path / "data", memory_bytes=GIB)
    assert not (tmp_path / "data").exists()
    with caplog.at_level(logging.WARNING):
        manifest = prepare(inputs, SHOP, tmp_path / "data", memory_bytes=GIB, on_bad_row="skip")
    assert [file.num_bad_rows for file in manifest.inputs] == [2, 0, 0]
    assert [file.num_rows for file in manifest.inputs] == [3, 1, 2]
    assert "day_0.csv: left out 2 bad rows, the first in line 5" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no,1,tea,,0", r"label: all 3 train rows are 0"),
        ("yes,,tea,,0", r"without a single value in the train rows: price"),
        ("yes,1,,,0", r"without a single value in the train rows: item"),
        ("yes,1e39,tea,tea,0", r"^day_0.csv line 2: column 'price': '1e39' is infinite or too la"),
    ],
)
def test_a_refused_log_is_no_dataset_and_no_hindrance(
    tmp_path: Path, line: str, message: str
) -> None:
    header = DAYS["day_0.csv"][0]
    days = {**DAYS, "day_0.csv": [header, line, line, "no" + line[line.index(",") :]]}
    config = msgspec.structs.replace(
        SHOP, dense=(DenseGroup(columns=("price",), transform="none"),)
    )
    with pytest.raises(DataError, match=message):
        prepare(shop(tmp_path / "log", days), config, tmp_path / "data", memory_bytes=GIB)
    assert {path.name for path in tmp_path.iterdir()} <= {"log", ".data.prepare"}
    prepare(shop(tmp_path / "log"), config, tmp_path / "data", memory_bytes=GIB)
    prepare(shop(tmp_path / "log"), config, tmp_path / "again", memory_bytes=GIB)
    assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == {"log", "data", "again"}


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    inputs = shop(tmp_path / "log")
    with pytest.raises(ConfigError, match=r"--memory: 767 MiB; 768 MiB is the least"):
        prepare(inputs, SHOP, tmp_path / "data", memory_bytes=LEAST_PROCESS_BYTES - 1)
    with pytest.raises(DataError, match=r"--input: no file"):
        prepare([], SHOP, tmp_path / "data", memory_bytes=GIB)
    with pytest.raises(DataError, match=r"log: exists and is not an empty folder"):
        prepare(inputs, SHOP, tmp_path / "log", memory_bytes=GIB)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk on which no file can grow beyond `num_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A staged file takes 19 KB here, the encoded rows of a file 19 KB too, the train part 57 KB.
@pytest.mark.parametrize(("num_bytes", "last_step"), [(1 << 10, "stage"), (40 << 10, "write")])
def test_after_a_full_disk_it_goes_on(
    log: Path, tmp_path: Path, num_bytes: int, last_step: str
) -> None:
    inputs, data, steps = expand_inputs([f"{log}/*.gz"]), tiny_recipe().data, [""]

    def prepare_to(name: str) -> None:
        out = tmp_path / name
        prepare(inputs, data, out, memory_bytes=GIB, progress=lambda *told: steps.append(told[0]))

    with largest_file(num_bytes), pytest.raises(DataError, match=r"the disk refuses: .*free disk"):
        prepare_to("data")
    assert steps[-1] == last_step
    # What is finished is kept, if anything is.
    assert [path.name for path in tmp_path.iterdir()] == [".data.prepare"] * (last_step == "write")
    del steps[:]
    prepare_to("data")
    assert ("encode" in steps) == (last_step == "stage")
    prepare_to("whole")
    assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "whole")


def test_adult(tmp_path: Path) -> None:
    folder = shared_data() / "adult"
    inputs = [folder / "adult.data.gz", folder / "adult.test.gz"]
    data = load_config("adult", Recipe).data
    manifest = prepare(inputs, data, tmp_path / "data", memory_bytes=GIB)
    assert [file.num_rows for file in manifest.inputs] == [32_561, 16_281]
    # Published with the data: 7,841 of the 32,561 and 3,846 of the 16,281 earn more than 50,000.
    test, train, validation = (manifest.splits[s] for s in ("test", "train", "validation"))
    assert test == SplitInfo(num_rows=16_281, num_positives=3_846)
    assert train.num_rows + validation.num_rows == 32_561
    assert train.num_positives + validation.num_positives == 7_841
    # 2 sexes, no value missing, and the two reserved rows.
    assert manifest.encoding.tables["sex"].num_embeddings == 4


def test_criteo_sample(tmp_path: Path) -> None:
    folder = shared_data() / "criteo_sample"
    inputs = expand_inputs([f"{folder}/day_*.gz"])
    data = load_config("criteo-sample", Recipe).data
    manifest = prepare(inputs, data, tmp_path / "data", memory_bytes=GIB)
    assert [file.num_rows for file in manifest.inputs] == [10_000] * 8
    splits = manifest.splits
    assert {name: info.num_rows for name, info in splits.items()} == {
        "train": 60_000,
        "validation": 10_000,
        "test": 10_000,
    }
    assert sum(info.num_positives for info in splits.values()) == 2_573
    # Counted here by plain Python: train is days 0 to 5, missing values left out.
    (table,) = (table for table in manifest.schema.tables if table.name == "C1")
    counts: Counter[str] = Counter()
    for path in inputs[:6]:
        with gzip.open(path, "rt") as lines:
            counts.update(line.rstrip("\n").split("\t")[14] for line in lines)
    del counts[""]
    kept = sorted((-n, int(text, 16)) for text, n in counts.items() if n >= table.min_count)
    with pa.memory_map(str(tmp_path / "data" / "vocab" / "C1.arrow")) as source:
        found = pa.ipc.open_file(source).read_all().to_pydict()
    assert [(-n, key) for n, key in zip(found["count"], found["key"], strict=True)] == kept
    coverage = manifest.encoding.tables["C1"].coverage
    assert coverage == pytest.approx(-sum(n for n, _ in kept) / counts.total())


def timed(folder: Path, *times: list[str]) -> list[Path]:
    """A file for each list of times; row r of all files sells item r."""
    rows = iter(range(100))
    days = {
        f"day_{day}.csv": ["bought,price,item,seen,hour,at"]
        + [f"{('no', 'yes')[at % 2]},{at},i{at},,1,{time}" for time in part for at in [next(rows)]]
        for day, part in enumerate(times)
    }
    return shop(folder, days)


LATEST_THIRD = SplitConfig(
    validation=Holdout(by="none"), test=Holdout(by="time", amount=1 / 3, column="at")
)
PRICE_ALONE = msgspec.structs.replace(
    SHOP,
    dense=(DenseGroup(columns=("price",), transform="none"),),
    sparse=(SparseGroup(columns=("item",)),),
    split=LATEST_THIRD,
)


@pytest.mark.parametrize(
    "times",
    [
        [["1.5", "9", "2"], ["8", "3", "4"]],
        [
            ["2024-02-01", "2024-11-05", "2024-03-01"],
            ["2024-11-04 23:59:59", "2024-05-01", "2024-06-01"],
        ],
    ],
)
def test_the_latest_rows_are_test(tmp_path: Path, times: list[list[str]]) -> None:
    prepare(timed(tmp_path / "log", *times), PRICE_ALONE, tmp_path / "data", memory_bytes=GIB)
    test = rows_of(tmp_path / "data", "test")
    assert [row["price"] for row in test] == [1.0, 3.0]
    assert [row["item"] for row in test] == [0, 0]
    assert [row["price"] for row in rows_of(tmp_path / "data", "train")] == [0.0, 2.0, 4.0, 5.0]


def test_times_of_two_kinds_are_refused(tmp_path: Path) -> None:
    inputs = timed(tmp_path / "log", ["1", "2", "3"], ["2024-02-01", "2024-02-02"])
    message = r"times in day_0.csv are numbers, in day_1.csv date-times; write them alike"
    with pytest.raises(DataError, match=message):
        prepare(inputs, PRICE_ALONE, tmp_path / "data", memory_bytes=GIB)
