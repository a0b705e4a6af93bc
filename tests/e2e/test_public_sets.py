"""The presets of public sets, on small files that look like the real ones: from raw to trained.

The real files differ in size alone: columns, quirks and order are theirs.
"""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdlrm.data.dataset import Dataset
from fastdlrm.data.generate import generate
from tests.builders import ROOT, invoke

SMALL = ("model.embedding_dim=4", "train.global_batch_size=64", "train.num_epochs=1")


def through(
    folder: Path, preset: str, inputs: object, *overrides: str
) -> tuple[dict[str, int], Path]:
    """Prepare, train and evaluate; rows of each split, and the run."""
    settings = [word for override in (*SMALL, *overrides) for word in ("--set", override)]
    config = ["--config", preset, *settings, "--json"]
    manifest = json.loads(invoke("prepare", *config, "--input", inputs, "--out", folder / "data"))
    trained = json.loads(
        invoke("train", *config, "--data", folder / "data", "--out", folder / "run")
    )
    assert trained["is_finished"]
    test = json.loads(invoke("eval", "--run", folder / "run", "--data", folder / "data", "--json"))
    assert 0 < test["log_loss"] < 1
    sizes = {name: split["num_rows"] for name, split in manifest["splits"].items()}
    assert test["num_samples"] == sizes["test"]
    return sizes, folder / "run"


def encoded(folder: Path, split: str, column: str) -> list[object]:
    parts = sorted((folder / split).iterdir())
    return [v for part in parts for v in pa.ipc.open_file(str(part)).read_all()[column].to_pylist()]


def labels_of(lines: Sequence[str]) -> list[int]:
    return [int(line.split("\t", 1)[0]) for line in lines]


def criteo_lines(folder: Path, num_rows: int, num_files: int = 1) -> list[list[str]]:
    generate(folder, num_rows=num_rows, num_files=num_files, gzip=False, seed=3)
    files = [folder / f"day_{i}.tsv" for i in range(num_files)]
    return [file.read_text().splitlines(keepends=True) for file in files]


def test_criteo_kaggle(tmp_path: Path) -> None:
    """7 * 285 + 4 lines: days of 286 286 286 286 285 285 285, the last one 143 and 142."""
    (lines,) = criteo_lines(tmp_path / "log", 1999)
    (tmp_path / "train.txt").write_text("".join(lines))
    sizes, _ = through(
        tmp_path, "criteo-kaggle", tmp_path / "train.txt", "model.bottom_mlp=[4]",
        "model.top_mlp=[8]", "data.shuffle=false",
    )  # fmt: skip
    assert sizes == {"train": 1714, "validation": 143, "test": 142}
    assert encoded(tmp_path / "data", "train", "label") == labels_of(lines[:1714])
    assert encoded(tmp_path / "data", "validation", "label") == labels_of(lines[1714:1857])
    assert encoded(tmp_path / "data", "test", "label") == labels_of(lines[1857:])


def test_criteo_terabyte(tmp_path: Path) -> None:
    days = criteo_lines(tmp_path / "log", 24 * 101, num_files=24)
    assert len(days[23]) == 101
    sizes, _ = through(
        tmp_path, "criteo-terabyte", tmp_path / "log" / "day_*", "model.bottom_mlp=[4]",
        "model.top_mlp=[8]", "data.sparse.0.min_count=15", "data.sparse.0.max_rows=100",
    )  # fmt: skip
    assert sizes == {"train": 23 * 101, "validation": 51, "test": 50}
    assert encoded(tmp_path / "data", "validation", "label") == labels_of(days[23][:51])
    assert encoded(tmp_path / "data", "test", "label") == labels_of(days[23][51:])


AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
    "app_category,device_id,device_ip,device_model,device_type,device_conn_type,"
    "C14,C15,C16,C17,C18,C19,C20,C21"
)


def avazu_rows(num_rows: int) -> list[str]:
    """Ten days in order, 2014-10-21 to 2014-10-30; C20 is -1 where unknown."""
    draw = random.Random(1)
    rows = []
    for i in range(num_rows):
        hour = 24 * 10 * i // num_rows
        site = draw.choice(["1fbe01fe", "85f751fd", "e151e245"])
        click = int(draw.random() < (0.5 if site == "1fbe01fe" else 0.1))
        ids = [f"{draw.getrandbits(6):08x}" for _ in range(7)]
        fields = [
            str(10000169349117863715 + i), str(click), f"1410{21 + hour // 24:02d}{hour % 24:02d}",
            "1005", str(draw.randint(0, 7)), site, "f3845767", *ids, "1", "0",
            str(15706 + draw.randint(0, 9)), "320", "50", "1722", "0", "35",
            draw.choice(["-1", "100084"]), "79",
        ]  # fmt: skip
        rows.append(",".join(fields))
    return rows


def test_avazu(tmp_path: Path) -> None:
    rows = avazu_rows(4800)
    (tmp_path / "train.csv").write_text("\n".join([AVAZU, *rows]) + "\n")
    sizes, run = through(tmp_path, "avazu", tmp_path / "train.csv", "model.top_mlp=[8]")
    # 240 hours of 20 rows: the last 24 are test, the 24 before them validation.
    assert sizes == {"train": 3840, "validation": 480, "test": 480}
    assert encoded(tmp_path / "data", "test", "label") == [
        int(row.split(",")[1]) for row in rows[4320:]
    ]
    # Of the train rows 20 are of each hour and day; the vocabulary's ties are in the hours' order.
    hours = encoded(tmp_path / "data", "test", "hour")
    assert hours == [2 + int(row.split(",")[2][-2:]) for row in rows[4320:]]
    # Train begins and ends on a Tuesday, row 2; Monday, Wednesday and Thursday, 30 October, follow.
    assert set(encoded(tmp_path / "data", "test", "weekday")) == {5}
    # The set's own test file lacks the clicks.
    header, *unlabelled = (line.split(",") for line in [AVAZU, *rows[:50]])
    text = "\n".join(",".join([line[0], *line[2:]]) for line in [header, *unlabelled])
    (tmp_path / "test.csv").write_text(text + "\n")
    scores = tmp_path / "scores.parquet"
    invoke(
        "predict", "--run", run, "--input", tmp_path / "test.csv", "--unlabelled", "--out", scores
    )
    assert pq.read_metadata(scores).num_rows == 50


def ratings(num_rows: int) -> list[tuple[int, int, str, int]]:
    """User, movie, rating, seconds since 1970; users rate in one sitting each."""
    draw = random.Random(2)
    rows = []
    for i in range(num_rows):
        user, movie = 1 + i // 40, draw.randint(1, 60)
        rating = draw.choice(["4.5", "5.0", "4.0"] if movie % 2 else ["0.5", "3.5", "4.0", "2.0"])
        rows.append((user, movie, rating, 1_141_415_820 + 3600 * i))
    return sorted(rows, key=lambda row: (row[0], row[1]))


@pytest.mark.parametrize("layout", ["ml-25m", "ml-1m"])
def test_movielens(tmp_path: Path, layout: str) -> None:
    rows = ratings(2000)
    overrides = ["model.top_mlp=[8]"]
    path = tmp_path / ("ratings.csv" if layout == "ml-25m" else "ratings.dat")
    if layout == "ml-25m":
        text = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in rows)]
    else:
        rows = [(u, m, str(max(1, int(float(r)))), t) for u, m, r, t in rows]
        text = ["::".join(map(str, row)) for row in rows]
        overrides += ["data.source.header=false", "data.source.delimiter=::"]
        overrides += ["data.source.columns=['userId','movieId','rating','timestamp']"]
    path.write_text("\n".join(text) + "\n")
    sizes, _ = through(tmp_path, "movielens", path, *overrides)
    assert sizes == {"train": 1600, "validation": 200, "test": 200}
    latest = sorted(row[3] for row in rows)[-200]
    test = [row for row in rows if row[3] >= latest]
    assert encoded(tmp_path / "data", "test", "label") == [int(float(row[2]) >= 4) for row in test]
    # The 40 users of train are known, the 5 of test are not.
    assert set(encoded(tmp_path / "data", "test", "userId")) == {0}
    assert set(encoded(tmp_path / "data", "train", "userId")) == set(range(2, 42))
    days = [datetime.fromtimestamp(row[3], UTC).weekday() for row in test]
    # 200 hours of test follow each other, so that each weekday has a row of its own, 2 .. 8.
    rows_of_days = dict(zip(days, encoded(tmp_path / "data", "test", "weekday"), strict=True))
    assert sorted(rows_of_days.values()) == list(range(2, 9))


def test_movielens_with_genres(tmp_path: Path) -> None:
    """The guide's block, on a small file of ratings."""
    raw = tmp_path / "RAW" / "ml-25m"
    raw.mkdir(parents=True)
    rows = ["userId,movieId,rating,timestamp", *(",".join(map(str, r)) for r in ratings(2000))]
    (raw / "ratings.csv").write_text("\n".join(rows) + "\n")
    kinds = ["Drama", "Comedy|Drama", "(no genres listed)"]
    movies = [f'{m},"Film, The ({1990 + m % 9})",{kinds[m % 3]}' for m in range(1, 61)]
    (raw / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")
    guide = (ROOT / "docs" / "guides" / "public-data.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        check=True,
    )
    data = Dataset.open(tmp_path / "DATA")
    assert data.manifest.encoding.tables["genres"].num_embeddings == 2 + 3
    lengths = Counter(map(len, encoded(tmp_path / "DATA", "train", "genres")))  # type: ignore[arg-type]
    assert set(lengths) == {1, 2}
    assert lengths[2] == pytest.approx(1600 / 3, rel=0.2)


def test_criteo_terabyte_of_parquet_parts(tmp_path: Path) -> None:
    """24 days of 3 parts; half of the last day's is no whole number of parts, nor of rows."""
    (lines,) = criteo_lines(tmp_path / "log", 72 * 30)
    numbers, ids = range(1, 14), range(1, 27)
    names = ["label", *(f"integer_feature_{i}" for i in numbers)]
    names += [f"categorical_feature_{i}" for i in ids]
    fields = list(zip(*(line.rstrip("\n").split("\t") for line in lines), strict=True))
    columns = [[int(v) if v else None for v in column] for column in fields[:14]]
    arrays = [pa.array(column, pa.int32()) for column in columns]
    arrays += [pa.array([v or None for v in column], pa.string()) for column in fields[14:]]
    table = pa.table(arrays, names)
    for part in range(72):
        day = tmp_path / "data" / f"day=2015-{2 if part < 42 else 3}-{1 + part // 3:02d}"
        day.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(30 * part, 30), day / f"part-{part:05d}.snappy.parquet")
    (tmp_path / "out").mkdir()
    sizes, _ = through(
        tmp_path / "out", "criteo-terabyte-parquet", tmp_path / "data" / "day=*" / "*.parquet",
        "model.bottom_mlp=[4]", "model.top_mlp=[8]",
    )  # fmt: skip
    assert sizes == {"train": 23 * 90, "validation": 45, "test": 45}
    assert encoded(tmp_path / "out" / "data", "test", "label") == labels_of(lines[-45:])


def test_adult_as_uci_has_it(tmp_path: Path) -> None:
    """The test file's first line is no row, its labels end in a full stop, and ? is missing."""
    draw = random.Random(3)

    def row(stop: str) -> str:
        income = draw.choice(["<=50K", ">50K"]) + stop
        work = draw.choice(["Private", "State-gov", "?"])
        return (
            f"{draw.randint(17, 90)}, {work}, {draw.randint(1, 10**6)}, Bachelors, 13, Divorced, "
            f"Sales, Husband, White, Male, 2174, 0, 40, United-States, {income}"
        )

    (tmp_path / "adult.data").write_text("\n".join(row("") for _ in range(300)) + "\n\n")
    lines = ["|1x3 Cross validator", *(row(".") for _ in range(50))]
    (tmp_path / "adult.test").write_text("\n".join(lines) + "\n\n")
    manifest = json.loads(
        invoke(
            "prepare", "--config", "adult", "--input", tmp_path / "adult.data",
            "--input", tmp_path / "adult.test", "--on-bad-row", "skip",
            "--out", tmp_path / "data", "--json",
        )
    )  # fmt: skip
    assert [f["num_bad_rows"] for f in manifest["inputs"]] == [0, 1]
    assert manifest["splits"]["test"]["num_rows"] == 50
