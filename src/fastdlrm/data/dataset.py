"""A prepared dataset on disk, opened by memory-mapping its parts.

Nothing is read until rows are gathered; the page cache is shared by all processes.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from fastdlrm.contracts.manifest import MANIFEST, DatasetManifest, read_manifest, verify_files
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.rows import Rows
from fastdlrm.errors import DataError

SPLITS = ("train", "validation", "test")


class Dataset:
    """A dataset folder.

    Attributes:
        folder: Where it lies.
        manifest: What it holds.
    """

    def __init__(self, folder: Path, manifest: DatasetManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path, deep: bool = False) -> "Dataset":
        """Open a dataset and check that it is whole.

        Args:
            folder: Made by `prepare`.
            deep: Whether to compare every checksum, reading every byte.

        Raises:
            DataError: No dataset there, or files are missing or altered.
        """
        manifest = read_manifest(folder, DatasetManifest)
        verify_files(folder, manifest, deep=deep)
        return cls(folder, manifest)

    @property
    def manifest_path(self) -> Path:
        """The manifest's file."""
        return self.folder / MANIFEST

    @property
    def schema(self) -> Schema:
        """Label, features and tables."""
        return self.manifest.schema

    def record_batches(self, split: str) -> Iterator[pa.RecordBatch]:
        """The encoded rows of train, validation or test, memory-mapped, a part at a time.

        Raises:
            DataError: The dataset has no such split.
        """
        if split not in self.manifest.splits:
            raise DataError(
                f"{self.folder}: no split {split!r}; it has {', '.join(self.manifest.splits)}; "
                f"prepare again with [data.split.{split}] set"
            )
        for part in sorted(p for p in self.manifest.files if p.startswith(f"{split}/")):
            yield from _read(self.folder / part)

    def split(self, name: str) -> Rows:
        """The rows of train, validation or test.

        Raises:
            DataError: The dataset has no such split.
        """
        rows = Rows(list(self.record_batches(name)), self.schema)
        expected = self.manifest.splits[name].num_rows
        if len(rows) != expected:
            raise DataError(
                f"{self.folder}: split {name!r} holds {len(rows)} rows, the manifest says "
                f"{expected}; prepare again"
            )
        return rows


def _read(path: Path) -> list[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        return [file.get_batch(i) for i in range(file.num_record_batches)]
    except pa.ArrowInvalid as problem:
        raise DataError(f"{path}: not an Arrow file: {problem}; prepare again") from problem
