"""Staged rows made by hand, for tests of what comes after staging."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from fastdlrm.contracts.encoding import HASH_VERSION, Encoding, TableEncoding
from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.data.counts import TrainSpan, write_run
from fastdlrm.data.first_seen import first_seen_vocabulary
from fastdlrm.data.fit import fit_edges, fit_statistics, largest_value, require_values
from fastdlrm.data.split import resolve_splits
from fastdlrm.data.staged import StagedRows
from fastdlrm.data.vocabulary import merge_vocabulary, write_vocabulary

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


def fit(
    folder: Path,
    rows: StagedRows,
    schema: Schema,
    split: SplitConfig = EVERYTHING_TRAIN,
    *,
    memory_bytes: int = 1 << 24,
    span_chunks: int = 2,
) -> Encoding:
    """Fit all there is to fit, counting so many chunks at a time; vocabularies go to `folder`."""
    folder.mkdir(exist_ok=True)
    with duckdb.connect() as connection:
        splits = resolve_splits(rows, split, 0, connection)
        require_values(rows, splits, schema)
        scaled = [f for f in schema.dense if f.transform == "standardize"]
        bucketised = [f for f in schema.sparse if f.key == "quantile"]
        edges = {f.name: fit_edges(rows, splits, f, connection) for f in bucketised}
        tables = {}
        for one in schema.tables:
            features = [f for f in schema.sparse if f.table == one.name]
            if one.encoding == "identity":
                num_rows = one.max_rows or largest_value(rows, features) + 1
                tables[one.name] = TableEncoding(
                    num_embeddings=num_rows, vocabulary="", coverage=1.0, first_id=0
                )
                continue
            if one.encoding == "reference":
                vocabulary = first_seen_vocabulary(one, features[0], rows, memory_bytes)
                tables[one.name] = write_vocabulary(folder, one, vocabulary, "hex", ())
                continue
            if one.encoding == "hash":
                tables[one.name] = TableEncoding(
                    num_embeddings=one.max_rows, vocabulary="", coverage=1.0
                )
                continue
            runs = []
            for start in range(0, len(rows.chunks), span_chunks):
                train = TrainSpan(rows, splits, rows.chunks[start : start + span_chunks])
                runs.append(folder / f"{start}.run")
                write_run(
                    runs[-1],
                    features,
                    train.values,
                    edges=edges,
                    connection=connection,
                    memory_bytes=memory_bytes,
                )
            key = features[0].key
            vocabulary = merge_vocabulary(
                one, key, runs, connection=connection, memory_bytes=memory_bytes
            )
            bounds = edges.get(features[0].name, ())
            tables[one.name] = write_vocabulary(folder, one, vocabulary, key, bounds)
    return Encoding(
        hash_version=HASH_VERSION,
        dense={f.name: fit_statistics(rows, splits, f) for f in scaled},
        quantiles=edges,
        tables=tables,
    )
