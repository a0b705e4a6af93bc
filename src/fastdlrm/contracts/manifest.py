"""The manifest beside every artifact: what it is, what made it, and a checksum a file.

A folder without its manifest does not exist: the manifest is written last, and atomically.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from fastdlrm.contracts.encoding import HASH_VERSION, Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import DataError, FastDLRMError

MANIFEST = "manifest.json"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an artifact."""

    sha256: str
    size_bytes: int
    num_rows: int = 0


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """A raw file that an artifact was made from."""

    name: str
    """File name, without its folder."""
    sha256: str
    """Of the file as it lies on disk, compressed or not."""
    size_bytes: int
    num_rows: int
    """Rows read, bad ones not counted."""
    num_bad_rows: int = 0
    """Rows skipped under `--on-bad-row skip`."""
    num_positives: int | None = None
    """Rows read of label 1; None where labels were not read or not counted by file."""


class SplitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Size of train, validation or test."""

    num_rows: int
    num_positives: int


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """What every manifest says."""

    kind: str
    """dataset, run, checkpoint or exported."""
    version: int
    """Of the kind's layout."""
    created_by: str
    """Package version."""
    commit: str
    """Commit of the package's source tree; empty where it is not one."""
    config: dict[str, Any]
    """The resolved config that made the artifact."""
    files: dict[str, FileEntry]
    """By path relative to the artifact."""


class DatasetManifest(Artifact, frozen=True, kw_only=True):
    """A prepared dataset."""

    inputs: tuple[InputFile, ...]
    schema: Schema
    encoding: Encoding
    splits: dict[str, SplitInfo]
    """train, validation, test; a split without rows is absent."""


class RunManifest(Artifact, frozen=True, kw_only=True):
    """A training run: all that `eval` and `predict` need besides a checkpoint."""

    schema: Schema
    encoding: Encoding
    dataset_sha256: str
    """Of the dataset's manifest."""
    machine: str = ""
    """Processor or GPU that it was started on; empty where it is not known."""


class CheckpointManifest(Artifact, frozen=True, kw_only=True):
    """One checkpoint of a run."""

    step: int
    """Optimizer steps done."""
    state: dict[str, Any]
    """Position in the data, best metric and the like, as the loop keeps them."""


ArtifactT = TypeVar("ArtifactT", bound=Artifact)
VERSIONS = {"dataset": 1, "run": 1, "checkpoint": 1, "exported": 2}


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_of(path: Path, num_rows: int = 0) -> FileEntry:
    """Checksum and size of a file on disk."""
    return FileEntry(sha256=sha256_of(path), size_bytes=path.stat().st_size, num_rows=num_rows)


def source_commit() -> str:
    """Commit of the package's source tree, with "+" where files differ from it; empty if none."""
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        inside = _output([*git, "ls-files", "--error-unmatch", Path(__file__).name])
        return _output([*git, "rev-parse", "HEAD"]) + _dirty(git) if inside else ""
    except (OSError, subprocess.CalledProcessError):
        return ""


def _dirty(git: list[str]) -> str:
    return "+" if _output([*git, "status", "--porcelain", "--untracked-files=no"]) else ""


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or none."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name only when it is whole: temporary name, fsync, replace."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_manifest(folder: Path, manifest: Artifact) -> None:
    """Write `manifest.json`, indented, atomically; call it last."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    write_atomic(folder / MANIFEST, text + b"\n")


def read_manifest(
    folder: Path, kind: type[ArtifactT], error: type[FastDLRMError] = DataError
) -> ArtifactT:
    """Read and check a manifest.

    Args:
        folder: The artifact.
        kind: The manifest's type.
        error: What to raise when it cannot be read.

    Raises:
        FastDLRMError: As `error`: no manifest, of another kind, of another version, damaged.
    """
    path = folder / MANIFEST
    wanted = kind.__name__.removesuffix("Manifest").lower()
    if not path.is_file():
        raise error(f"{folder}: no {MANIFEST}; a finished {wanted} folder has one, name such a one")
    try:
        head = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        found = (head.get("kind"), head.get("version"))
        if found != (wanted, VERSIONS[wanted]):
            raise error(
                f"{path}: kind and version are {found}, wanted {(wanted, VERSIONS[wanted])}; "
                f"name a {wanted} folder made by this version"
            )
        manifest = msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise error(f"{path}: damaged manifest: {problem}; make the {wanted} again") from problem
    encoding = getattr(manifest, "encoding", None)
    if encoding is not None and encoding.hash_version != HASH_VERSION:
        raise error(
            f"{path}: hash version {encoding.hash_version}, this version reads {HASH_VERSION}; "
            "prepare again"
        )
    return manifest


def verify_files(
    folder: Path, manifest: Artifact, error: type[FastDLRMError] = DataError, deep: bool = False
) -> None:
    """Check that every file of an artifact is there, whole, and (deep) has its checksum.

    Raises:
        FastDLRMError: As `error`: a file is missing, of another size, or altered.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise error(f"{path}: missing, though the manifest lists it; make {folder} again")
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise error(
                f"{path}: {size} bytes, the manifest says {entry.size_bytes}; make {folder} again"
            )
        if deep and sha256_of(path) != entry.sha256:
            raise error(f"{path}: its sha256 is not the manifest's; make {folder} again")
