import hashlib
import os
from itertools import pairwise
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from fastdlrm.data.write import disk_errors, new_folder, write_part, write_parts
from fastdlrm.errors import DataError


def test_a_part_is_one_record_batch_that_can_be_mapped(tmp_path: Path) -> None:
    rows = pa.record_batch({"a": pa.array([1, 2, 3], pa.uint8()), "b": pa.array([[1], [], [2, 3]])})
    entry = write_part(tmp_path / "train" / "part.arrow", rows)
    content = (tmp_path / "train" / "part.arrow").read_bytes()
    assert entry.num_rows == 3
    assert entry.size_bytes == len(content)
    assert entry.sha256 == hashlib.sha256(content).hexdigest()
    before = pa.total_allocated_bytes()
    with pa.memory_map(str(tmp_path / "train" / "part.arrow")) as source:
        file = pa.ipc.open_file(source)
        assert file.num_record_batches == 1
        found = file.get_batch(0)
        assert found.equals(rows)
        assert pa.total_allocated_bytes() == before
    assert write_part(tmp_path / "again.arrow", rows) == entry


def test_parts_hold_whole_batches(tmp_path: Path) -> None:
    """Rows of 1 byte; parts of 5: 2 + 3, then 4, then 6, which is more than a part."""
    values = pa.array([number % 2 for number in range(15)], pa.uint8())
    bounds = [0, 2, 5, 9, 15]
    batches = (pa.record_batch({"label": values[a:b]}) for a, b in pairwise(bounds))
    written = write_parts(tmp_path, "test", batches, part_bytes=5)
    names = [f"test/part-0000{number}.arrow" for number in range(3)]
    assert [written.files[name].num_rows for name in names] == [5, 4, 6]
    assert (written.info.num_rows, written.info.num_positives) == (15, 7)
    read = []
    for name in names:
        with pa.ipc.open_file(str(tmp_path / name)) as file:
            assert file.num_record_batches == 1
            read += file.get_batch(0).column("label").to_pylist()
    assert read == values.to_pylist()


def test_a_split_without_rows_has_no_part(tmp_path: Path) -> None:
    written = write_parts(tmp_path, "test", [])
    assert written.files == {}
    assert written.info.num_rows == 0


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_complete(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    with new_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert folder.parent == out.parent
        assert folder.name.startswith(".out.partial-")
        assert not out.exists() or not any(out.iterdir())
    assert (out / "sub" / "file").read_text() == "x"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_the_leftovers_of_a_killed_process_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".out.partial-{os.getpid()}" / "work").mkdir(parents=True)
    with new_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with (
            pytest.raises(DataError, match=f"{name}: exists and is not an empty folder"),
            new_folder(tmp_path / name),
        ):
            pytest.fail("entered")
    assert (tmp_path / "full" / "precious").read_text() == "x"


def test_a_full_disk_is_named() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full absent")
    with (
        pytest.raises(DataError, match=r"OUT: the disk refuses: .*No space left.*free disk space"),
        disk_errors(Path("OUT")),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(DataError, match=r"file/out: the disk refuses: .*check the path"),
        new_folder(tmp_path / "file" / "out"),
    ):
        pytest.fail("entered")


def test_duckdb_out_of_memory_is_named(tmp_path: Path) -> None:
    with (
        duckdb.connect(config={"memory_limit": "10MB", "temp_directory": ""}) as connection,
        pytest.raises(DataError, match=r"OUT: Out of Memory Error: .*; raise --memory"),
        disk_errors(Path("OUT")),
    ):
        connection.execute("SELECT count(DISTINCT hash(i)) FROM range(10000000) AS r(i)")
