import gzip
import hashlib
import random
import zlib
from pathlib import Path

import pytest

from fastdlrm.data.scan import CHUNK_BYTES, Scan
from fastdlrm.errors import DataError

TEXT = random.Random(1).randbytes(CHUNK_BYTES).hex().encode()


def _read(path: Path, content: bytes) -> tuple[bytes, Scan]:
    path.write_bytes(content)
    scan = Scan(path)
    return b"".join(scan.chunks()), scan


def _check(path: Path, content: bytes, text: bytes) -> None:
    read, scan = _read(path, content)
    assert read == text
    assert scan.sha256 == hashlib.sha256(content).hexdigest()
    assert scan.size_bytes == len(content)


def test_plain_text(tmp_path: Path) -> None:
    _check(tmp_path / "a.tsv", TEXT, TEXT)


def test_gzip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    _check(tmp_path / "a.tsv", gzip.compress(TEXT, 1), TEXT)


def test_gzip_of_several_members_and_zero_padding(tmp_path: Path) -> None:
    members = gzip.compress(TEXT[:7]) + gzip.compress(b"") + gzip.compress(TEXT[7:], 1)
    _check(tmp_path / "a.gz", members + bytes(2_000_000), TEXT)


def test_pieces_are_bounded_however_well_it_compresses(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(20 * CHUNK_BYTES), 1))
    sizes = [len(chunk) for chunk in Scan(path).chunks()]
    assert sum(sizes) == 20 * CHUNK_BYTES
    assert max(sizes) <= CHUNK_BYTES


def test_an_empty_file_has_no_pieces(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.gz", b"")[0] == b""


@pytest.mark.parametrize("cut", [5, 1000, 8, 1])
def test_truncated_gzip(tmp_path: Path, cut: int) -> None:
    with pytest.raises(DataError, match=r"a\.gz: the gzip data ends in the middle; copy or"):
        _read(tmp_path / "a.gz", gzip.compress(TEXT, 1)[:-cut])


def test_damaged_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(TEXT, 1))
    content[-6] ^= 1  # in the checksum
    with pytest.raises(DataError, match=r"a\.gz: damaged gzip data \(.*incorrect data check\)"):
        _read(tmp_path / "a.gz", bytes(content))


def test_a_gz_file_that_is_not_gzip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.gz: damaged gzip data \(.*incorrect header check\)"):
        _read(tmp_path / "a.gz", b"1\t2\n")


def test_garbage_after_the_last_member(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.gz: damaged gzip data \(.*incorrect header check\)"):
        _read(tmp_path / "a.gz", gzip.compress(b"1\n") + b"garbage")


def test_other_compressions_are_named(tmp_path: Path) -> None:
    zstd = b"\x28\xb5\x2f\xfd" + zlib.compress(b"1")
    with pytest.raises(DataError, match=r"a\.zst: a zstd file; plain or gzipped text is read"):
        _read(tmp_path / "a.zst", zstd)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.tsv: no such file; correct the path"):
        list(Scan(tmp_path / "b.tsv").chunks())


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: Is a directory; check the disk"):
        list(Scan(tmp_path).chunks())
