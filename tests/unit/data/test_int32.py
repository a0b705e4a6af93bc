"""Files of int32 rows, made by hand here."""

import gzip
import hashlib
import struct
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fastdlrm.data.config import SourceConfig
from fastdlrm.data.source import StagedFile
from fastdlrm.errors import ConfigError, DataError
from tests.unit.data.raw_files import rows_of, schema_of, sparse, stage

INT32 = SourceConfig(format="int32", columns=("label", "I1", "C1", "U"))
SCHEMA = schema_of(sparse("U", "int"), dense=("I1",))
ROWS = [(1, 7, 99, 2**31 - 1), (0, -3, 0, 5), (0, 0, 4, 0)]


def packed(rows: list[tuple[int, ...]]) -> bytes:
    return b"".join(struct.pack("<4i", *row) for row in rows)


def read(folder: Path, content: bytes, name: str = "rows.bin") -> StagedFile:
    return stage(folder / name, content, INT32, SCHEMA)


def test_by_hand(tmp_path: Path) -> None:
    # One row as bytes: 1, 7, 99 and the largest int32, each with its lowest byte first.
    first = bytes.fromhex("01000000 07000000 63000000 ffffff7f")
    assert packed(ROWS)[:16] == first
    staged = read(tmp_path, packed(ROWS))
    assert rows_of(staged) == {
        "__label": [1, 0, 0],
        "d.I1": [7.0, -3.0, 0.0],
        "s.U": [2**31 - 1, 5, 0],
    }
    assert staged.input.size_bytes == 48
    assert staged.input.sha256 == hashlib.sha256(packed(ROWS)).hexdigest()
    assert staged.input.num_positives == 1


def test_gzip_and_more_than_a_batch(tmp_path: Path) -> None:
    rows = [(i % 2, i, 0, i // 3) for i in range(200_000)]
    staged = read(tmp_path, gzip.compress(packed(rows), 1), "rows.bin.gz")
    found = pq.read_table(staged.path)
    assert found["d.I1"].to_pylist() == [row[1] for row in rows]
    assert found["s.U"].to_pylist() == [row[3] for row in rows]


@pytest.mark.parametrize("num_bytes", [1, 15, 47])
def test_a_truncated_file_is_refused(tmp_path: Path, num_bytes: int) -> None:
    whole, rest = divmod(num_bytes, 16)
    with pytest.raises(
        DataError,
        match=rf"rows\.bin: ends after {whole} rows and {rest} bytes of 16, one int32 for each",
    ):
        read(tmp_path, packed(ROWS)[:num_bytes])


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.bin: no rows; leave the file out"):
        read(tmp_path, b"")


def test_a_wrong_label_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.bin row 2: column 'label': '7' is neither"):
        read(tmp_path, packed([ROWS[0], (7, 0, 0, 0)]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            SourceConfig(format="int32"),
            "format 'int32' with header = false and 0 columns; na",
        ),
        (
            SourceConfig(format="int32", header=True, columns=("label",)),
            "format 'int32' with header = true and 1 columns",
        ),
        (
            SourceConfig(format="int32", columns=("label", "I1", "C1")),
            r"data\.source\.columns lacks column 'U'",
        ),
    ],
)
def test_a_layout_that_no_file_has(tmp_path: Path, source: SourceConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(tmp_path / "rows.bin", packed(ROWS), source, SCHEMA)
