"""A prepared dataset on disk, opened by memory-mapping its parts.

Nothing is read until rows are gathered; the page cache is shared by all processes.
"""

from pathlib import Path

import pyarrow as pa

from fastdlrm.contracts.manifest import MANIFEST, DatasetManifest, read_manifest, verify_files
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.parts import read_parts
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

    def split(self, name: str) -> Rows:
        """The rows of train, validation or test.

        Raises:
            DataError: The dataset has no such split.
        """
        return Rows(self.record_batches(name), self.schema)

    def record_batches(self, name: str) -> list[pa.RecordBatch]:
        """The encoded rows of train, validation or test in order, memory-mapped.

        Raises:
            DataError: The dataset has no such split, or a part is damaged.
        """
        if name not in self.manifest.splits:
            raise DataError(
                f"{self.folder}: no split {name!r}; it has {', '.join(self.manifest.splits)}; "
                f"prepare again with [data.split.{name}] set"
            )
        return read_parts(self.folder, self.manifest, name)
