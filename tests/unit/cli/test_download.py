"""`fastdlrm download`, from a server on this machine."""

import json
from pathlib import Path

from tests.builders import fastdlrm, invoke
from tests.unit.data.file_server import FileServer, serving

TABLE = """
[days]
about = "a set of two files"
terms = "free"
page = "https://example.org"

[[days.files]]
name = "day_{{n}}"
url = "{url}"
numbered = 2
"""


def test_the_sets_are_listed() -> None:
    listed = invoke("download")
    assert "criteo-kaggle" in listed
    assert "UCI Adult" in listed
    assert json.loads(invoke("download", "--json"))["adult"]["terms"] == "CC BY 4.0"


def test_a_set_is_fetched_and_taken_as_there(tmp_path: Path) -> None:
    with serving(FileServer(b"a,b\n" * 1000)) as server:
        (tmp_path / "table.toml").write_text(TABLE.format(url=server.url))
        command = ("download", "days", "--out", tmp_path / "raw")
        command += ("--url-table", tmp_path / "table.toml")
        told = invoke(*command)
        assert "day_0  4,000 bytes, checked against nothing: no checksum is published" in told
        assert (tmp_path / "raw" / "day_1").read_bytes() == b"a,b\n" * 1000
        again = json.loads(invoke(*command, "--json", "--file", "day_1"))
        assert [(f["name"], f["is_new"]) for f in again] == [("day_1", False)]
        assert len(server.ranges) == 2
        other = invoke("download", "days", *command[2:], "--file", "day_1", "--url", server.url)
        assert "recorded in checksums.sha256" in other


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    complaint = fastdlrm("download", "adlut", "--out", tmp_path, code=2)
    assert complaint.startswith("error: set 'adlut': not in the table; known are adult, avazu, ")
    complaint = fastdlrm("download", "adult", code=2)
    assert complaint == "error: --out is missing; name the folder for the files\n"
    complaint = fastdlrm("download", "avazu", "--out", tmp_path, code=1)
    assert "train.gz: no address to fetch it from; Kaggle asks for a login" in complaint
