"""Records of finished tasks."""

import logging
from pathlib import Path

import msgspec
import pytest

from fastdlrm.contracts.manifest import FileEntry, entry_of
from fastdlrm.contracts.schema import Label
from fastdlrm.data.journal import Journal, Record, digest


def record(work: Path, **files: str) -> Record:
    """A record of written files."""
    entries: dict[str, FileEntry] = {}
    for name, text in files.items():
        (work / name).write_text(text)
        entries[name] = entry_of(work / name)
    return Record(task="count/00007", key="k", files=entries, result=msgspec.Raw(b'{"n":1}'))


def test_a_record_is_found_again(tmp_path: Path) -> None:
    journal, written = Journal(tmp_path), record(tmp_path, a="x", b="y")
    assert journal.is_empty
    assert journal.find("count/00007") is None
    journal.write(written)
    assert not journal.is_empty
    found = journal.find("count/00007")
    assert found is not None
    assert (found.key, found.files, bytes(found.result)) == ("k", written.files, b'{"n":1}')
    assert journal.find("count/00008") is None


@pytest.mark.parametrize("place", [0, 63, 64, 65, 90, -1])
def test_a_record_with_one_bit_altered_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    journal = Journal(tmp_path)
    journal.write(record(tmp_path, a="x"))
    path = tmp_path / "journal" / "count" / "00007.json"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x80
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert journal.find("count/00007") is None
    assert f"{path}: damaged; the task is done again" in caplog.text
    path.write_bytes(path.read_bytes()[:10])
    assert journal.find("count/00007") is None


def test_files_that_are_missing_or_altered_are_named(tmp_path: Path) -> None:
    journal, written = Journal(tmp_path), record(tmp_path, a="xx", b="yy")
    assert journal.damaged_file(written) == ""
    (tmp_path / "b").write_text("yz")
    assert journal.damaged_file(written) == "b"
    (tmp_path / "b").write_text("yyy")
    assert journal.damaged_file(written) == "b"
    (tmp_path / "a").unlink()
    assert journal.damaged_file(written) == "a"


def test_a_digest_tells_parts_and_structs_apart() -> None:
    label = Label(column="y", positive=("1",), negative=("0",))
    other = Label(column="y", positive=("1",), negative=("0", ""))
    found = [digest("a", "b"), digest("ab"), digest("b", "a"), digest(label), digest(other)]
    assert len(set(found)) == len(found)
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    # printf '["a","b"]' | sha256sum
    assert digest("a", "b").startswith("0473ef2dc0d324ab659d3580c1134e9d")
