"""What a resumable job has finished: one checked record a task, in a folder beside its files.

A record is valid for one key, the digest of all that the task's outcome depends on. It names each
file that the task wrote with size and sha256, so nothing needs to be durable before it is recorded:
what a crash of the machine took away is found and done again.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.manifest import FileEntry, sha256_of, write_atomic

logger = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A finished task."""

    task: str
    """Step and number, e.g. stage/00003."""
    key: str
    """Digest of all that the outcome depends on."""
    files: dict[str, FileEntry]
    """What it wrote, by path relative to the work folder."""
    result: msgspec.Raw
    """What later steps need to know, as JSON."""


def digest(*parts: Any) -> str:
    """Hexadecimal sha256 of plain data and structs."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


class Journal:
    """The records of one job.

    Args:
        work: The work folder; records lie in `journal/` under it.
    """

    def __init__(self, work: Path) -> None:
        self._work = work

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever finished."""
        return not any((self._work / "journal").rglob("*.json"))

    def find(self, task: str) -> Record | None:
        """A task's record; None where there is none, or a damaged one, which is said."""
        path = self._path(task)
        if not path.is_file():
            return None
        checksum, _, content = path.read_bytes().partition(b"\n")
        try:
            if checksum.decode() == hashlib.sha256(content).hexdigest():
                return msgspec.json.decode(content, type=Record)
        except (UnicodeDecodeError, msgspec.MsgspecError):
            pass
        logger.warning("%s: damaged; the task is done again", path)
        return None

    def write(self, record: Record) -> None:
        """Keep a record, atomically."""
        path = self._path(record.task)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = msgspec.json.encode(record)
        write_atomic(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def damaged_file(self, record: Record) -> str:
        """The first file that is missing or altered; empty where all are as recorded."""
        for name, entry in record.files.items():
            path = self._work / name
            is_there = path.is_file() and path.stat().st_size == entry.size_bytes
            if not is_there or sha256_of(path) != entry.sha256:
                return name
        return ""

    def _path(self, task: str) -> Path:
        return self._work / "journal" / f"{task}.json"
