"""What a fetched file is held against: published checksums, and those of the first download.

FOLDER/checksums.sha256 keeps the sha256 of every file fetched, in the format of `sha256sum -c`.
"""

import hashlib
from pathlib import Path
from typing import Any

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.data.remote import RemoteFile
from fastdlrm.errors import DataError

RECORD = "checksums.sha256"
CHUNK_BYTES = 1 << 20


def compare(
    file: RemoteFile, size: int, found: dict[str, str], recorded: str | None, where: str
) -> str:
    """Compare a file with what is known of it.

    Args:
        file: What was published.
        size: Of the file.
        found: Its digests by kind.
        recorded: The sha256 of an earlier download.
        where: For the message.

    Returns:
        What it was compared with.

    Raises:
        DataError: It differs.
    """
    remedy = (
        "remove it if it is there and fetch it again; if it is so again, the source has changed"
    )
    if file.size_bytes and size != file.size_bytes:
        raise DataError(f"{where}: {size:,} bytes, the table says {file.size_bytes:,}; {remedy}")
    kind, _, published = file.checksum.partition(":")
    if published and found[kind] != published:
        raise DataError(f"{where}: its {kind} is {found[kind]}, published is {published}; {remedy}")
    if published:
        return f"published {kind}"
    if recorded is not None and recorded != found["sha256"]:
        raise DataError(
            f"{where}: its sha256 is {found['sha256']}, {recorded} stands in {RECORD} since the "
            f"first download; {remedy}, and its line is to be removed from {RECORD}"
        )
    if recorded is not None:
        return f"sha256 recorded in {RECORD}"
    known = "its size alone" if file.size_bytes else "nothing"
    return f"{known}: no checksum is published; its sha256 stands in {RECORD} from now on"


def digests_for(file: RemoteFile) -> dict[str, Any]:
    """Fresh digests of the kinds that are needed for a file, by kind; sha256 always."""
    kinds = {"sha256", file.checksum.partition(":")[0]} - {""}
    return {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}


def hash_file(path: Path, digests: dict[str, Any]) -> int:
    """Feed a file to the digests; returns its size."""
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            for digest in digests.values():
                digest.update(chunk)
    return size


def recorded(target: Path) -> str | None:
    """The sha256 that the record of its folder has for a file, if any."""
    return _records(target.with_name(RECORD)).get(target.name)


def record(target: Path, sha256: str) -> None:
    """Write a file's sha256 to the record of its folder."""
    path = target.with_name(RECORD)
    lines = _records(path) | {target.name: sha256}
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(lines.items()))
    write_atomic(path, text.encode())


def _records(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.split("  ", 1) for line in path.read_text().splitlines() if "  " in line)
    return {name: digest for digest, name in pairs}
