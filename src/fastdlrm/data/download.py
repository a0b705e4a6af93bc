"""Fetching files over HTTP: resumed where they were left, checked, and complete or not there.

FOLDER/.NAME.part holds what has come of a file, FOLDER/.NAME.part.json what it is a part of. The
file appears under its name when it is whole and has its checksum. FOLDER/checksums.sha256 keeps the
sha256 of every file, in the format of `sha256sum -c`: where no checksum is published, the one of
the first download is what later ones are held against.
"""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm import __version__
from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.data.checksums import compare, digests_for, hash_file, record, recorded
from fastdlrm.data.remote import RemoteFile
from fastdlrm.data.write import disk_errors
from fastdlrm.errors import DataError

CHUNK_BYTES = 1 << 20

_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_NOT_SATISFIABLE = 416

Progress = Callable[[str, int, int], None]
"""Takes a file's name, the bytes of it that are there, and its size (0 where it is not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to try.

    Attributes:
        num_attempts: Attempts in a row that bring no byte before it is given up.
        first_wait_s: Before the second attempt; doubled before each further one, up to a minute.
        timeout_s: Silence after which a connection is given up.
    """

    num_attempts: int = 6
    first_wait_s: float = 1.0
    timeout_s: float = 60.0


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is there, whole."""

    name: str
    size_bytes: int
    sha256: str
    checked: str
    """Against what: the published checksum, the one recorded before, or nothing but itself."""
    resumed_at_byte: int = 0
    """Bytes that an earlier command had left."""
    is_new: bool = True
    """Whether this command fetched it."""


def download(
    file: RemoteFile,
    folder: Path,
    *,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch one file, or check it where it is there already.

    Args:
        file: With its address.
        folder: Where to put it; made where absent.
        patience: How long to try.
        progress: Told what has come.

    Raises:
        DataError: The server refuses or cannot be reached, the content is not what was published or
            recorded, or the disk refuses.
    """
    target = folder / file.name
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            return _present(file, target)
        transfer = _Transfer(file, target, patience or Patience(), progress or (lambda *_: None))
        return transfer.run()


class _Lost(Exception):
    """The connection failed; trying again may help."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a part is a part of."""

    url: str
    validator: str
    """Of the file at the server: its ETag or date."""


class _Transfer:
    """One file on its way."""

    def __init__(
        self, file: RemoteFile, target: Path, patience: Patience, progress: Progress
    ) -> None:
        self._file, self._target, self._progress = file, target, progress
        self._patience = patience
        self._path = target.with_name(f".{target.name}.part")
        self._meta = target.with_name(f".{target.name}.part.json")
        self._digests = digests_for(file)
        self._size = 0
        self._total = file.size_bytes
        self._validator = ""
        self._take_up()

    def run(self) -> Fetched:
        resumed_at = most = self._size
        num_failed = 0
        while True:
            try:
                self._attempt()
                break
            except _Lost as problem:
                num_failed = 1 if self._size > most else num_failed + 1
                most = max(most, self._size)
                if num_failed >= self._patience.num_attempts:
                    raise DataError(
                        f"{self._file.url}: {problem}; given up after {num_failed} attempts, "
                        f"{self._size:,} bytes are kept: run the command again to go on"
                    ) from problem
            wait = self._patience.first_wait_s * 2 ** (num_failed - 1)
            time.sleep(min(wait, 60.0))
        checked = self._check()
        with self._path.open("rb") as part:
            os.fsync(part.fileno())
        self._path.replace(self._target)
        self._meta.unlink(missing_ok=True)
        sha256 = self._digests["sha256"].hexdigest()
        record(self._target, sha256)
        return Fetched(
            name=self._file.name,
            size_bytes=self._size,
            sha256=sha256,
            checked=checked,
            resumed_at_byte=resumed_at,
        )

    def _take_up(self) -> None:
        """Go on from an earlier command's part, where it can be told to be of the same file."""
        if not self._path.exists():
            return
        try:
            part = msgspec.json.decode(self._meta.read_bytes(), type=_Part)
        except (FileNotFoundError, msgspec.DecodeError):
            part = None
        if part and part.url == self._file.url and (part.validator or self._file.checksum):
            self._validator = part.validator
            self._size = hash_file(self._path, self._digests)
        else:
            self._start_over()

    def _start_over(self) -> None:
        self._path.unlink(missing_ok=True)
        self._meta.unlink(missing_ok=True)
        self._digests, self._size, self._validator = digests_for(self._file), 0, ""

    def _attempt(self) -> None:
        """Ask for what is missing, and take it."""
        if self._total and self._size == self._total:
            return
        response = self._open()
        with response:
            if response.status == 206 and _first_byte(response) != self._size:
                self._start_over()
                raise _Lost("the server sent another range than was asked for")
            if response.status != 206 and self._size:
                self._start_over()  # it does not serve ranges, or the file has changed
            self._require_data(response)
            self._learn(response)
            self._copy(response)
        if self._total and self._size < self._total:
            raise _Lost(f"the connection ended after {self._size:,} of {self._total:,} bytes")

    def _open(self) -> Any:
        headers = {"User-Agent": f"fastdlrm/{__version__}", "Accept-Encoding": "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if self._validator:
                headers["If-Range"] = self._validator
        request = urllib.request.Request(self._file.url, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=self._patience.timeout_s)
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code == _NOT_SATISFIABLE and self._size:
                self._start_over()  # the part is longer than the file
                raise _Lost("the server has less than the part on disk") from problem
            if problem.code in _RETRIED:
                raise _Lost(f"HTTP {problem.code} {problem.reason}") from problem
            raise DataError(
                f"{self._file.url}: HTTP {problem.code} {problem.reason}; the address may have "
                "changed, or ask for a login: find the file, and pass --url or --url-table"
            ) from problem
        except (OSError, http.client.HTTPException) as problem:
            raise _Lost(f"no connection ({getattr(problem, 'reason', problem)})") from problem

    def _require_data(self, response: Any) -> None:
        if response.headers.get_content_type() == "text/html":
            raise DataError(
                f"{self._file.url}: the server sends a web page, not {self._file.name}; it may ask "
                "for a login or consent: open the address in a browser, and pass --url"
            )

    def _learn(self, response: Any) -> None:
        """Take the file's size and validator from the answer, and check the size."""
        total, expected = _total_of(response), self._file.size_bytes
        if total and expected and total != expected:
            raise DataError(
                f"{self._file.url}: {total:,} bytes at the server, {expected:,} in the table; it "
                "is another file: check the address, and pass --url or --url-table"
            )
        self._total = total or expected
        if not (self._total or self._file.checksum or response.chunked):
            raise DataError(
                f"{self._file.url}: the server does not tell the size, so a broken connection "
                "could not be told from the end; give size_bytes or checksum in a --url-table"
            )
        to_come, free = self._total - self._size, shutil.disk_usage(self._path.parent).free
        if to_come > free:
            raise DataError(
                f"{self._target}: {to_come:,} bytes are to come, {free:,} are free on the disk; "
                "free space, or name another folder"
            )
        etag = response.headers.get("ETag", "")
        strong = "" if etag.startswith("W/") else etag
        self._validator = strong or response.headers.get("Last-Modified", "")
        part = _Part(url=self._file.url, validator=self._validator)
        write_atomic(self._meta, msgspec.json.encode(part))

    def _copy(self, response: Any) -> None:
        with self._path.open("ab" if self._size else "wb") as part:
            while True:
                try:
                    chunk = response.read(CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as problem:
                    raise _Lost(
                        f"the connection broke after {self._size:,} bytes ({problem})"
                    ) from problem
                if not chunk:
                    return
                part.write(chunk)
                for digest in self._digests.values():
                    digest.update(chunk)
                self._size += len(chunk)
                self._progress(self._file.name, self._size, self._total)

    def _check(self) -> str:
        """Compare what has come with what was published or recorded; says with which.

        Raises:
            DataError: It differs; the part is removed.
        """
        found = {name: digest.hexdigest() for name, digest in self._digests.items()}
        try:
            return compare(self._file, self._size, found, recorded(self._target), self._file.url)
        except DataError:
            self._start_over()
            raise


def _present(file: RemoteFile, target: Path) -> Fetched:
    """Check a file that is there."""
    digests = digests_for(file)
    size = hash_file(target, digests)
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    checked = compare(file, size, found, recorded(target), f"{target} (there already)")
    record(target, found["sha256"])
    return Fetched(
        name=file.name, size_bytes=size, sha256=found["sha256"], checked=checked, is_new=False
    )


def _first_byte(response: Any) -> int | None:
    """Of a partial answer: "bytes 100-199/200" begins at 100."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else None


def _total_of(response: Any) -> int:
    """The file's size: after the slash of "bytes 100-199/200", or of a whole answer its length; 0
    where it is not told."""
    if response.status == 206:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        size = response.headers.get("Content-Length", "")
    return int(size) if size.isdecimal() else 0
