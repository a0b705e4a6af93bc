"""One pass over a file's bytes: their checksum, and the text they hold, unzipped where zipped.

The file is gzip if its name ends in ".gz" or it begins like gzip. Every member's checksum and
length are verified, and the last one must be complete. Reading, hashing and unzipping let other
threads run.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from fastdlrm.errors import DataError

READ_BYTES = 1 << 20
CHUNK_BYTES = 2 << 20
"""Most bytes of text handed on at once."""

_GZIP_MAGIC = b"\x1f\x8b"
_ONE_GZIP_MEMBER = 31
"""zlib's window bits for a gzip header, 32 KiB window and gzip trailer."""
_OTHER_ARCHIVES = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
}


class Scan:
    """Reads one file, once, from beginning to end.

    Args:
        path: The file.

    Attributes:
        size_bytes: Bytes on disk read so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hexadecimal checksum of the bytes read so far; of the file once `chunks` has ended."""
        return self._hash.hexdigest()

    def chunks(self) -> Iterator[bytes]:
        """The file's text, none of the pieces empty.

        Raises:
            DataError: The file cannot be read, is truncated, or is damaged.
        """
        raw = self._raw()
        first = next(raw, b"")
        for magic, name in _OTHER_ARCHIVES.items():
            if first.startswith(magic):
                raise DataError(
                    f"{self.path.name}: a {name} file; plain or gzipped text is read here, "
                    "convert it, or check data.source.format"
                )
        if first and (self.path.suffix == ".gz" or first.startswith(_GZIP_MAGIC)):
            yield from self._unzip(chain([first], raw))
        elif first:
            yield first
            yield from raw

    def _raw(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while piece := file.read(READ_BYTES):
                    self._hash.update(piece)
                    self.size_bytes += len(piece)
                    yield piece
        except FileNotFoundError as problem:
            raise DataError(f"{self.path}: no such file; correct the path") from problem
        except OSError as problem:
            raise DataError(
                f"{self.path}: cannot be read: {problem.strerror}; check the disk and the file's "
                "permissions"
            ) from problem

    def _unzip(self, raw: Iterable[bytes]) -> Iterator[bytes]:
        member = zlib.decompressobj(_ONE_GZIP_MEMBER)
        try:
            for piece in raw:
                rest = piece
                while rest:
                    if member.eof:  # another member follows, or zeros that pad the file
                        rest = rest.lstrip(b"\0")
                        if not rest:
                            break
                        member = zlib.decompressobj(_ONE_GZIP_MEMBER)
                    if text := member.decompress(rest, CHUNK_BYTES):
                        yield text
                    rest = member.unused_data if member.eof else member.unconsumed_tail
            if text := member.flush():
                yield text
        except zlib.error as problem:
            raise DataError(
                f"{self.path.name}: damaged gzip data ({problem}); copy or download the file again"
            ) from problem
        if not member.eof:
            raise DataError(
                f"{self.path.name}: the gzip data ends in the middle; copy or download the file "
                "again"
            )
