"""The disk a prepare needs is estimated before it begins."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdlrm.contracts.schema import Label
from fastdlrm.data.config import (
    DataConfig,
    DenseGroup,
    Holdout,
    SourceConfig,
    SparseGroup,
    SplitConfig,
)
from fastdlrm.data.disk import DiskNeed, estimate, require_disk
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from fastdlrm.data.work import work_path
from fastdlrm.errors import DataError
from tests.builders import tiny_recipe

NONE = Holdout(by="none")


def config(source: SourceConfig) -> DataConfig:
    return DataConfig(
        source=source,
        label=Label(column="y", positive=("1",), negative=("0",)),
        dense=(DenseGroup(columns=("x",), transform="none"),),
        sparse=(
            SparseGroup(columns=("a",), key="int"),
            SparseGroup(columns=("b",), key="int", encoding="hash", max_rows=300),
            SparseGroup(columns=("words",), bag=True, separator=" " * (source.format == "csv")),
        ),
        split=SplitConfig(validation=NONE, test=NONE),
        shuffle=False,
        seed=0,
    )


CSV = config(SourceConfig(format="csv", header=True))


def test_the_fullest_moment_counts() -> None:
    # 10 rows: staged and counted 3 + 1, staged and encoded 3 + 4, encoded twice 8.
    assert DiskNeed(10, 3.0, 1.0, 4.0).num_bytes == 80
    assert DiskNeed(10, 5.0, 1.0, 4.0).num_bytes == 90
    assert DiskNeed(10, 5.0, 6.0, 4.0).num_bytes == 110


def test_bytes_of_a_row_by_hand(tmp_path: Path) -> None:
    # 1 for the label, 4 for x, 4 for a (1,000 values x 32 are beyond 16 bits), 2 for b, and 4 + 2
    # for the words: 2 ids of 1 byte, as 3 values x 4 fit it. Counted: 16 bytes for each value of
    # a, and 16 + 1 for each of the words.
    lines = [f"{row % 2},{row},{row * 7},{row},u v\n" for row in range(999)]
    path = tmp_path / "log.csv"
    path.write_text("y,x,a,b,words\n" + "".join(lines) + "0,1,2,3,v w\n")
    need = estimate([path], CSV)
    assert need is not None
    assert need.num_rows == pytest.approx(1000, rel=0.01)
    assert need.encoded_bytes == pytest.approx(1 + 4 + 2 + 2 + 4 + 2)
    assert need.counted_bytes == pytest.approx((16 * 1000 + 17 * 3) / 1000, rel=0.01)


def test_parquet_tells_its_rows(tmp_path: Path) -> None:
    columns = {
        "y": pa.array([0, 1] * 50),
        "x": pa.array([0.5] * 100),
        "a": pa.array(range(100)),
        "b": pa.array(range(100)),
        "words": pa.array([["u"]] * 100),
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    pq.write_table(pa.table(columns), tmp_path / "1.parquet")
    need = estimate(sorted(tmp_path.iterdir()), config(SourceConfig(format="parquet")))
    assert need is not None
    assert need.num_rows == 200


@pytest.mark.parametrize("gzip", [False, True])
def test_the_estimate_is_near_what_is_taken(tmp_path: Path, gzip: bool) -> None:
    generate(tmp_path / "log", num_rows=30_000, num_files=2, gzip=gzip, seed=7)
    inputs, data = expand_inputs([f"{tmp_path}/log/day_*"]), tiny_recipe().data
    need = estimate(inputs, data)
    assert need is not None
    assert need.num_rows == pytest.approx(30_000, rel=0.05)
    taken = []

    def measure(step: str, done: int, total: int) -> None:
        folder = work_path(tmp_path / "data")
        taken.append(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))

    prepare(inputs, data, tmp_path / "data", memory_bytes=2**30, num_workers=1, progress=measure)
    assert max(taken) < 1.1 * need.num_bytes
    assert max(taken) > 0.5 * need.num_bytes


def test_intermediate_files_are_no_wider_than_the_dataset(tmp_path: Path) -> None:
    """The reference's intermediate files hold every number in 64 bits."""
    generate(tmp_path / "log", num_rows=30_000, num_files=2, gzip=False, seed=7)
    inputs, sizes = expand_inputs([f"{tmp_path}/log/day_*"]), {}

    def measure(step: str, done: int, total: int) -> None:
        for kind in ("staged", "encoded"):
            files = list((work_path(tmp_path / "data") / kind).glob("*[0-9].*"))
            sizes[kind] = max(sizes.get(kind, 0), sum(path.stat().st_size for path in files))

    manifest = prepare(
        inputs,
        tiny_recipe().data,
        tmp_path / "data",
        memory_bytes=2**30,
        num_workers=1,  # else a file could be renamed by another while it is measured
        progress=measure,
    )
    parts = sum(file.size_bytes for file in manifest.files.values() if file.num_rows)
    assert 0 < sizes["encoded"] < 1.1 * parts
    assert 0 < sizes["staged"] < sum(path.stat().st_size for path in inputs)


def test_too_little_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.csv"
    path.write_text("y,x,a,b,words\n" + "1,2,3,4,u\n" * 1000)
    require_disk([path], CSV, tmp_path / "deep" / "data")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    message = r"data: about 0\.0 GiB of disk are needed, 0\.0 GiB are free in .*: 1,000 rows, "
    with pytest.raises(DataError, match=message + r".*or pass --skip-disk-check"):
        require_disk([path], CSV, tmp_path / "data")
    # What an earlier run left there is room already taken.
    work_path(tmp_path / "data").mkdir()
    (work_path(tmp_path / "data") / "staged").write_bytes(bytes(10**6))
    require_disk([path], CSV, tmp_path / "data")


def test_a_file_that_cannot_be_read_is_left_to_staging(tmp_path: Path) -> None:
    for name, content in (("a", b"y,x\n1,2\n"), ("b", b"\x1f\x8b\x08 not gzip"), ("c", b"")):
        (tmp_path / name).write_bytes(content)
        assert estimate([tmp_path / name], CSV) is None
    require_disk([tmp_path / "a"], CSV, tmp_path / "data")
