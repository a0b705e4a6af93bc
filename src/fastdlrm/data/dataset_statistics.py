"""What a dataset holds: its rows, each feature's values, how they differ from split to split.

One column is looked at at a time, a block of it at a time. Memory is about 32 bytes a row of the
largest table and a few MiB, whatever the number of rows. Nothing here imports torch.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.manifest import (
    DatasetManifest,
    InputFile,
    SplitInfo,
    read_manifest,
    verify_files,
)
from fastdlrm.contracts.schema import DenseFeature, IdEncoding, Key, SparseFeature, Transform
from fastdlrm.data.dense_statistics import DenseSplit, dense_splits
from fastdlrm.data.encode import encoded_schema, transformed
from fastdlrm.data.lookups import Popularity, Spectrum
from fastdlrm.data.parts import read_parts
from fastdlrm.data.sparse_statistics import SparseSplit, TableScan, TopId
from fastdlrm.data.split import SPLITS
from fastdlrm.errors import DataError

MAX_RUNS = 50
"""Runs of rows that a split in input order is cut into."""
LEAST_RUN_ROWS = 1000

Splits = dict[str, list[pa.RecordBatch]]
Progress = Callable[[str, float], None]


class SplitSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Train, validation or test."""

    num_rows: int
    num_positives: int
    is_shuffled: bool
    """Whether the rows lie in random order, not in that of the input."""
    runs: tuple[SplitInfo, ...]
    """Of a split in input order, equal runs of consecutive rows, one after the other; of a shuffled
    one, none: its order says nothing."""


class DenseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A dense feature, as the model sees it: after fill and transform."""

    name: str
    transform: Transform
    fill: float
    """What stands in place of a missing value."""
    edges: tuple[float, ...]
    """Between the bars of every split's histogram; the outer bars hold all that lies beyond."""
    splits: dict[str, DenseSplit]


class SparseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A sparse feature."""

    name: str
    table: str
    key: Key
    is_bag: bool
    is_weighted: bool
    """Whether each id carries a weight; without, each counts 1."""
    splits: dict[str, SparseSplit]
    top: tuple[TopId, ...]
    """The ids most frequent in train."""


class TableSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An embedding table, as train looks it up."""

    name: str
    encoding: IdEncoding
    features: tuple[str, ...]
    coverage: float
    """Share of train's ids that are in the vocabulary; 1 for encoding "hash"."""
    popularity: Popularity


class DatasetStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset."""

    name: str
    """Of the folder."""
    created_by: str
    """Package version."""
    commit: str
    inputs: tuple[InputFile, ...]
    splits: dict[str, SplitSummary]
    dense: tuple[DenseSummary, ...]
    sparse: tuple[SparseSummary, ...]
    tables: tuple[TableSummary, ...]
    popularity: Popularity | None
    """Of the rows of all tables together; None without tables."""


def dataset_statistics(folder: Path, progress: Progress | None = None) -> DatasetStatistics:
    """Look at every column of a dataset.

    Args:
        folder: Made by `prepare`.
        progress: Called with a stage's name and the share of it that is done.

    Raises:
        DataError: No dataset there, or its files are missing, altered or not what the manifest
            says.
    """
    manifest = read_manifest(folder, DatasetManifest)
    verify_files(folder, manifest)
    progress = progress or (lambda stage, share: None)
    splits = _open(folder, manifest)
    dense = []
    for done, feature in enumerate(manifest.schema.dense, start=1):
        dense.append(_dense(feature, manifest, splits))
        progress("dense", done / len(manifest.schema.dense))
    sparse: dict[str, SparseSummary] = {}
    tables, spectra = [], []
    for done, table in enumerate(manifest.schema.tables, start=1):
        scan = TableScan(folder, manifest.encoding.tables[table.name])
        features = [f for f in manifest.schema.sparse if f.table == table.name]
        sparse |= {f.name: _sparse(f, scan, splits) for f in features}
        spectra.append(scan.spectrum())
        tables.append(
            TableSummary(
                name=table.name,
                encoding=table.encoding,
                features=tuple(f.name for f in features),
                coverage=manifest.encoding.tables[table.name].coverage,
                popularity=spectra[-1].popularity(),
            )
        )
        progress("tables", done / len(manifest.schema.tables))
    is_shuffled = bool(manifest.config["data"]["shuffle"])
    return DatasetStatistics(
        name=folder.resolve().name,
        created_by=manifest.created_by,
        commit=manifest.commit,
        inputs=manifest.inputs,
        splits={
            name: _split(manifest.splits[name], rows, is_shuffled and name == "train")
            for name, rows in splits.items()
        },
        dense=tuple(dense),
        sparse=tuple(sparse[f.name] for f in manifest.schema.sparse),
        tables=tuple(tables),
        popularity=Spectrum.merged(spectra).popularity() if spectra else None,
    )


def _open(folder: Path, manifest: DatasetManifest) -> Splits:
    columns = encoded_schema(manifest.schema, manifest.encoding)
    splits = {
        name: read_parts(folder, manifest, name) for name in SPLITS if name in manifest.splits
    }
    for name, rows in splits.items():
        for part in rows:
            if not part.schema.equals(columns):
                raise DataError(
                    f"{folder}: a part of {name!r} has the columns {_listed(part.schema)}; the "
                    f"manifest's are {_listed(columns)}; prepare again"
                )
    return splits


def _listed(columns: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in columns)


def _split(info: SplitInfo, rows: list[pa.RecordBatch], is_shuffled: bool) -> SplitSummary:
    num_runs = max(1, min(MAX_RUNS, info.num_rows // LEAST_RUN_ROWS))
    return SplitSummary(
        num_rows=info.num_rows,
        num_positives=info.num_positives,
        is_shuffled=is_shuffled,
        runs=() if is_shuffled else _runs([part.column("label") for part in rows], num_runs),
    )


def _runs(labels: list[pa.Array], num_runs: int) -> tuple[SplitInfo, ...]:
    """Rows and positives of equal runs of rows."""
    bounds = np.linspace(0, sum(map(len, labels)), num_runs + 1).astype(np.int64)
    positives = np.zeros(num_runs, dtype=np.int64)
    start = 0
    for column in labels:
        inner = np.clip(bounds - start, 0, len(column))
        sums = np.concatenate([[0], np.cumsum(column.to_numpy(), dtype=np.int64)])
        positives += np.diff(sums[inner])
        start += len(column)
    return tuple(
        SplitInfo(num_rows=int(n), num_positives=int(k))
        for n, k in zip(np.diff(bounds), positives, strict=True)
    )


def _dense(feature: DenseFeature, manifest: DatasetManifest, splits: Splits) -> DenseSummary:
    fill = transformed(feature, np.array([feature.fill]), manifest.encoding)[0]
    columns: dict[str, list[NDArray[np.float32]]] = {
        name: [part.column(feature.name).to_numpy() for part in rows]
        for name, rows in splits.items()
    }
    edges, found = dense_splits(columns, fill)
    return DenseSummary(
        name=feature.name,
        transform=feature.transform,
        fill=float(fill),
        edges=edges,
        splits=found,
    )


def _sparse(feature: SparseFeature, scan: TableScan, splits: Splits) -> SparseSummary:
    found, top = scan.look_at(feature, splits)
    return SparseSummary(
        name=feature.name,
        table=feature.table,
        key=feature.key,
        is_bag=feature.bag,
        is_weighted=feature.is_weighted,
        splits=found,
        top=top,
    )
