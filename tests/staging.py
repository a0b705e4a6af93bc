"""Staged rows made by hand, for tests of what comes after staging."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.data.staged import StagedRows

LABEL = Label(column="y", positive=("1",), negative=("0",))
NONE = Holdout(by="none")
EVERYTHING_TRAIN = SplitConfig(validation=NONE, test=NONE)

STAGED_TYPES = {
    "hex": pa.uint64(),
    "int": pa.int64(),
    "string": pa.string(),
    "quantile": pa.float64(),
}


def dense(name: str, transform: str = "none", fill: float = 0.0) -> DenseFeature:
    """A dense feature whose raw column bears its name."""
    return DenseFeature(name=name, column=name, transform=transform, fill=fill)  # type: ignore[arg-type]


def sparse(name: str, key: str = "hex", table: str = "", **settings: object) -> SparseFeature:
    """A sparse feature whose raw column, and table unless given, bears its name."""
    settings = {"num_quantiles": 4 if key == "quantile" else 0, **settings}
    return SparseFeature(name=name, column=name, table=table or name, key=key, **settings)  # type: ignore[arg-type]


def table(name: str, encoding: str = "vocabulary", min_count: int = 1, max_rows: int = 0) -> Table:
    """A table, by default of every value."""
    return Table(name=name, encoding=encoding, min_count=min_count, max_rows=max_rows)  # type: ignore[arg-type]


def schema(*parts: DenseFeature | SparseFeature | Table) -> Schema:
    """A schema of features and tables; a table that is not given is `table(name)`."""
    features = [part for part in parts if isinstance(part, SparseFeature)]
    tables = {part.name: part for part in parts if isinstance(part, Table)}
    for feature in features:
        tables.setdefault(feature.table, table(feature.table))
    return Schema(
        label=LABEL,
        dense=tuple(part for part in parts if isinstance(part, DenseFeature)),
        sparse=tuple(features),
        tables=tuple(tables.values()),
    )


def staged(folder: Path, *files: dict[str, pa.Array], row_group_rows: int = 1000) -> StagedRows:
    """Staged files with the given columns; a label alternates 0, 1 where none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, columns in enumerate(files):
        path = folder / f"{number}.parquet"
        num_rows = len(next(iter(columns.values())))
        label = pa.array([row % 2 for row in range(num_rows)], pa.uint8())
        pq.write_table(pa.table({"__label": label, **columns}), path, row_group_size=row_group_rows)
        paths.append(path)
    return StagedRows(paths)
