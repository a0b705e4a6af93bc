"""Every malformed input has its message, and leaves no staged file behind."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdlrm.data.config import SourceConfig
from fastdlrm.data.source import MAX_REPORTED, stage_file
from fastdlrm.errors import DataError
from tests.unit.data.raw_files import (
    CSV,
    PARQUET,
    SCHEMA,
    TSV,
    rows_of,
    schema_of,
    stage,
)

GOOD = b"1\t5\t68fd1e64\t7\n"
CHECK = "check data.source.delimiter and data.source.quote"
HINT = "(texts for missing values go into data.source.missing)"


def _require_nothing_left(folder: Path) -> None:
    assert [path for path in folder.iterdir() if "staged" in path.name] == []


def _fails(path: Path, content: bytes | None, message: str, source: SourceConfig = TSV) -> None:
    """Under both policies the message is exactly this, and no output is left."""
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            stage(path, content, source, on_bad_row=policy)
        _require_nothing_left(path.parent)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1\t5\t68fd1e64", f"3 fields, 4 are expected; {CHECK}"),
        (b"1\t5\t68fd1e64\t7\t8", f"5 fields, 4 are expected; {CHECK}"),
        (b" ", f"1 fields, 4 are expected; {CHECK}"),
        (b"1\tabc\t68fd1e64\t7", f"column 'I1': 'abc' is not a number {HINT}"),
        (b"1\t1e999\t68fd1e64\t7", "column 'I1': '1e999' is infinite or too large"),
        (b"1\t5\txyz\t7", "column 'C1': 'xyz' is not hexadecimal (digits 0-9 and a-f)"),
        (
            b"1\t5\t1ffffffffffffffffff\t7",
            "column 'C1': '1ffffffffffffffffff' is beyond 64 bits",
        ),
        (b"1\t5\tff\tabc", "column 'U': 'abc' is not a whole number"),
        (b"1\t5\tff\t1.5", "column 'U': '1.5' is not a whole number"),
        (
            b"1\t5\tff\t9223372036854775808",
            "column 'U': '9223372036854775808' is beyond 64 bits (signed)",
        ),
        (
            b"2\t5\tff\t7",
            "column 'label': '2' is neither positive ('1' or 'true') nor negative ('0' or 'false')",
        ),
        (b"\t5\tff\t7", "column 'label': is missing"),
        (b"1\t5\tf\0f\t7", "a NUL byte"),
        (b"1\t5\t\xff\t7", "a byte that is not UTF-8, 0xff"),
    ],
)
def test_a_bad_row_is_named_or_left_out(tmp_path: Path, row: bytes, reason: str) -> None:
    path = tmp_path / "day_3.gz"
    content = gzip.compress(GOOD * 3 + row + b"\n" + GOOD)
    message = f"day_3.gz line 4: {reason}; correct the row"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        stage(path, content)
    _require_nothing_left(tmp_path)

    staged = stage(path, content, on_bad_row="skip")
    assert [(bad.file, bad.line, bad.reason) for bad in staged.bad_rows] == [
        ("day_3.gz", 4, reason)
    ]
    assert (staged.input.num_rows, staged.input.num_bad_rows) == (4, 1)
    assert rows_of(staged)["s.C1"] == [0x68FD1E64] * 4


def test_the_first_bad_row_of_any_kind_is_named(tmp_path: Path) -> None:
    content = GOOD + b"1\tabc\tff\t7\n" + b"1\n" + b"\0\n"
    with pytest.raises(DataError, match=r"^day_3 line 2: column 'I1': 'abc' is not a number"):
        stage(tmp_path / "day_3", content)


def test_all_bad_rows_are_counted_and_the_first_kept(tmp_path: Path) -> None:
    content = b"1\tabc\tff\t7\n1\n" * 200 + GOOD
    staged = stage(tmp_path / "day_3", content, on_bad_row="skip")
    assert (staged.input.num_rows, staged.input.num_bad_rows) == (1, 400)
    assert [bad.line for bad in staged.bad_rows] == list(range(1, MAX_REPORTED + 1))


def test_a_file_of_bad_rows_only(tmp_path: Path) -> None:
    message = (
        f"day_3: all 2 rows are bad; the first, line 1: 1 fields, 4 are expected; {CHECK}; "
        "check [data.source] and the schema against the file"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        stage(tmp_path / "day_3", b"1,5,ff,7\n" * 2, on_bad_row="skip")
    _require_nothing_left(tmp_path)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n"])
def test_any_ending_of_the_last_line_is_sound(tmp_path: Path, ending: bytes) -> None:
    staged = stage(tmp_path / "day_3", GOOD + GOOD.rstrip() + ending)
    assert staged.input.num_rows == 2


def test_crlf_line_ends_are_sound(tmp_path: Path) -> None:
    staged = stage(tmp_path / "day_3", (GOOD * 2).replace(b"\n", b"\r\n"))
    assert rows_of(staged)["s.U"] == [7, 7]


def test_an_empty_file(tmp_path: Path) -> None:
    message = "no rows; leave the file out"
    _fails(tmp_path / "day_3", b"", f"day_3: {message}")
    _fails(tmp_path / "day_3", b"\n\n", f"day_3: {message}")
    _fails(tmp_path / "day_3.gz", gzip.compress(b""), f"day_3.gz: {message}")
    _fails(tmp_path / "day_3", b"label,I1,C1,U\n", f"day_3: {message}", CSV)


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "day_3"
    _fails(path, None, f"{path}: no such file; correct the path")


def test_truncated_gzip(tmp_path: Path) -> None:
    content = gzip.compress(GOOD * 300_000)[:-100]
    message = "the gzip data ends in the middle; copy or download the file again"
    _fails(tmp_path / "day_3.gz", content, f"day_3.gz: {message}")


def test_damaged_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(GOOD * 1000))
    content[-8] ^= 1  # in the checksum
    message = (
        "day_3.gz: damaged gzip data (Error -3 while decompressing data: incorrect data check); "
        "copy or download the file again"
    )
    _fails(tmp_path / "day_3.gz", bytes(content), message)


def test_a_header_without_a_column(tmp_path: Path) -> None:
    message = "day_3: the header lacks column 'C1'; it has 'c1'; correct the name"
    _fails(tmp_path / "day_3", b"label,I1,c1,U\n1,5,ff,7\n", message, CSV)


def test_rows_unlike_their_header(tmp_path: Path) -> None:
    content = b"label,I1,C1,U\n1,5,ff,7,8\n1,5,ff,7\n"
    with pytest.raises(DataError, match=r"^day_3 line 2: 5 fields, 4 are expected; check"):
        stage(tmp_path / "day_3", content, CSV)
    assert stage(tmp_path / "day_3", content, CSV, on_bad_row="skip").input.num_rows == 1


def test_parquet_without_a_column(tmp_path: Path) -> None:
    path = tmp_path / "day_3.parquet"
    pq.write_table(pa.table({"label": [1], "I1": [5], "U": [7], "c_1": ["ff"]}), path)
    _fails(
        path,
        None,
        "day_3.parquet: lacks column 'C1'; it has 'c_1'; correct the name",
        PARQUET,
    )


@pytest.mark.parametrize("content", [b"", b"label,x\n1,2\n", b"PAR1 and then nonsense PAR1"])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"^log\.parquet: not a Parquet file, or a damaged one: "):
        stage(tmp_path / "log.parquet", content, PARQUET)
    _require_nothing_left(tmp_path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"label": [1] * 50_000, "x": [str(i) for i in range(50_000)]}), path)
    content = bytearray(path.read_bytes())
    content[2000:60_000] = bytes(58_000)
    with pytest.raises(DataError, match=r"^log\.parquet: not a Parquet file, or a damaged one: "):
        stage(path, bytes(content), PARQUET, schema_of(dense=("x",)))
    _require_nothing_left(tmp_path)


def test_parquet_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"label": pa.array([], pa.int8()), "x": pa.array([], pa.int8())}), path)
    with pytest.raises(DataError, match=r"^log\.parquet: no rows; leave the file out$"):
        stage(path, None, PARQUET, schema_of(dense=("x",)))


def test_parquet_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    pq.write_table(pa.table({"label": [1]}), path)
    message = (
        "log: a Parquet file; plain or gzipped text is read here, convert it, or check "
        "data.source.format"
    )
    _fails(path, None, message)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the folder's place: the superuser may write to any folder."""
    (tmp_path / "log").write_bytes(GOOD)
    (tmp_path / "folder").write_bytes(b"")
    out = tmp_path / "folder" / "staged.parquet"
    with pytest.raises(
        DataError, match=r"^/.*/folder/staged\.parquet: the disk refuses: .*; check"
    ):
        stage_file(tmp_path / "log", TSV, SCHEMA, out, remedy=None)


FULL_DISK = """
import resource, sys
from pathlib import Path
from fastdlrm.errors import DataError
from tests.unit.data.raw_files import stage
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for largest_file_bytes in (0, 10, 4000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, most))
    try:
        stage(Path(sys.argv[1]))
    except DataError as error:
        print(error)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """Files cannot grow beyond a limit, which fails as a full disk does, at the rows or the end."""
    rows = (f"1\t{i * 7919 % 10007}\t{i * 2654435761:x}\t{i}\n" for i in range(2000))
    (tmp_path / "log").write_text("".join(rows))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, tmp_path / "log"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    message = r"/.*/staged\.parquet: the disk refuses: .*File too large; free disk space"
    assert [bool(re.fullmatch(message, line)) for line in done.stdout.splitlines()] == [True] * 3
    _require_nothing_left(tmp_path)
