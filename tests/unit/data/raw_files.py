"""What the tests of raw files share: a small schema, and staging of bytes."""

from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.source import StagedFile, stage_file

TSV = SourceConfig(format="csv", delimiter="\t", quote="", columns=("label", "I1", "C1", "U"))
"""Label, a number, a hexadecimal id, an integer id."""
CSV = SourceConfig(format="csv", header=True)
PARQUET = SourceConfig(format="parquet")


def schema_of(*sparse: SparseFeature, dense: tuple[str, ...] = ()) -> Schema:
    """A schema with label column `label` (1, 0) and a table a sparse feature."""
    return Schema(
        label=Label(column="label", positive=("1", "true"), negative=("0", "false")),
        dense=tuple(DenseFeature(name=n, column=n, transform="none", fill=0.0) for n in dense),
        sparse=sparse,
        tables=tuple(
            Table(name=name, encoding="vocabulary", min_count=1, max_rows=0)
            for name in dict.fromkeys(feature.table for feature in sparse)
        ),
    )


def sparse(name: str, key: Literal["string", "hex", "int"], **settings: object) -> SparseFeature:
    """A sparse feature of a column and a table of the same name."""
    return SparseFeature(name=name, column=name, table=name, key=key, **settings)


SCHEMA = schema_of(sparse("C1", "hex"), sparse("U", "int"), dense=("I1",))


def stage(
    path: Path,
    content: bytes | None = None,
    source: SourceConfig = TSV,
    schema: Schema = SCHEMA,
    *,
    on_bad_row: Literal["error", "skip"] = "error",
    labelled: bool = True,
    time_column: str = "",
) -> StagedFile:
    """Write `content` to `path` where given, and stage it to `staged.parquet` beside it."""
    if content is not None:
        path.write_bytes(content)
    return stage_file(
        path,
        source,
        schema,
        path.parent / "staged.parquet",
        remedy="correct the row" if on_bad_row == "error" else None,
        labelled=labelled,
        time_column=time_column,
    )


def rows_of(staged: StagedFile) -> dict[str, list[object]]:
    """The staged columns as lists."""
    columns: dict[str, list[object]] = pq.read_table(staged.path).to_pydict()
    return columns
