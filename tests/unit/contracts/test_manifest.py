"""Manifests and checksums: what is written is read back, and damage is named."""

import re
from pathlib import Path

import msgspec
import pytest

from fastdlrm.contracts.encoding import HASH_VERSION, DenseStatistics, Encoding, TableEncoding
from fastdlrm.contracts.manifest import (
    MANIFEST,
    CheckpointManifest,
    DatasetManifest,
    FileEntry,
    InputFile,
    SplitInfo,
    entry_of,
    read_manifest,
    sha256_of,
    source_commit,
    verify_files,
    write_atomic,
    write_manifest,
)
from fastdlrm.contracts.schema import DenseFeature, Label, Schema
from fastdlrm.errors import CheckpointError, DataError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""sha256 of "abc", from FIPS 180-2."""


def dataset(**changes: object) -> DatasetManifest:
    manifest = DatasetManifest(
        kind="dataset",
        version=1,
        created_by="0.1.0",
        commit="",
        config={"shuffle": True, "seed": 1},
        files={"part.bin": FileEntry(sha256=ABC, size_bytes=3, num_rows=7)},
        inputs=(InputFile(name="log.tsv", sha256=ABC, size_bytes=3, num_rows=7, num_bad_rows=1),),
        schema=Schema(
            label=Label(column="click", positive=("1",), negative=("0",)),
            dense=(DenseFeature(name="age", column="age", transform="standardize", fill=0.5),),
            sparse=(),
            tables=(),
        ),
        encoding=Encoding(
            hash_version=HASH_VERSION,
            dense={"age": DenseStatistics(mean=0.1, std=1e-300)},
            quantiles={"price": (0.1, 0.2)},
            tables={"city": TableEncoding(num_embeddings=5, vocabulary="city", coverage=1.0)},
        ),
        splits={"train": SplitInfo(num_rows=7, num_positives=2)},
    )
    return msgspec.structs.replace(manifest, **changes)


def checkpoint() -> CheckpointManifest:
    return CheckpointManifest(
        kind="checkpoint",
        version=1,
        created_by="0.1.0",
        commit="",
        config={},
        files={},
        step=9,
        state={"epoch": 1},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, dataset())
    assert read_manifest(tmp_path, DatasetManifest) == dataset()
    text = (tmp_path / MANIFEST).read_text()
    assert text.startswith('{\n  "kind": "dataset",\n')
    assert text.endswith("}\n")


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json; a finished dataset folder has one"):
        read_manifest(tmp_path, DatasetManifest)
    with pytest.raises(CheckpointError, match="a finished checkpoint folder has one"):
        read_manifest(tmp_path / "nowhere", CheckpointManifest, CheckpointError)


def test_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, checkpoint())
    with pytest.raises(
        DataError,
        match=re.escape("kind and version are ('checkpoint', 1), wanted ('dataset', 1); name a"),
    ):
        read_manifest(tmp_path, DatasetManifest)
    write_manifest(tmp_path, dataset(version=2))
    with pytest.raises(DataError, match=re.escape("are ('dataset', 2), wanted ('dataset', 1)")):
        read_manifest(tmp_path, DatasetManifest)


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b'{"kind": "dataset", "version": 1', b'{"kind": "\xff"}', b"\x00"],
    ids=["empty", "list", "cut", "not UTF-8", "zeros"],
)
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match=r"damaged manifest: .*; make the dataset again"):
        read_manifest(tmp_path, DatasetManifest)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"kind": "checkpoint", "version": 1}')
    with pytest.raises(CheckpointError, match=r"damaged manifest: .*required field `created_by`"):
        read_manifest(tmp_path, CheckpointManifest, CheckpointError)


def test_another_hash_version_is_refused(tmp_path: Path) -> None:
    encoding = msgspec.structs.replace(dataset().encoding, hash_version=HASH_VERSION + 1)
    write_manifest(tmp_path, dataset(encoding=encoding))
    with pytest.raises(
        DataError, match=f"hash version {HASH_VERSION + 1}, this version reads {HASH_VERSION}; prep"
    ):
        read_manifest(tmp_path, DatasetManifest)


def test_checksum_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "part.bin"
    path.write_bytes(b"abc")
    assert sha256_of(path) == ABC
    assert entry_of(path, num_rows=7) == FileEntry(sha256=ABC, size_bytes=3, num_rows=7)


def test_files_are_verified(tmp_path: Path) -> None:
    path, manifest = tmp_path / "part.bin", dataset()
    with pytest.raises(DataError, match=r"part\.bin: missing, though the manifest lists it; make"):
        verify_files(tmp_path, manifest)
    path.write_bytes(b"ab")
    with pytest.raises(DataError, match=r"part\.bin: 2 bytes, the manifest says 3; make"):
        verify_files(tmp_path, manifest)
    path.write_bytes(b"abd")
    verify_files(tmp_path, manifest)
    with pytest.raises(CheckpointError, match=r"part\.bin: its sha256 is not the manifest's"):
        verify_files(tmp_path, manifest, CheckpointError, deep=True)
    path.write_bytes(b"abc")
    verify_files(tmp_path, manifest, deep=True)


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"first", b"second"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_source_commit_is_a_commit_or_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"([0-9a-f]{40,64}\+?)?", source_commit())
    monkeypatch.setenv("PATH", "")
    assert source_commit() == ""
