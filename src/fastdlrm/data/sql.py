"""SQL over a stream of values that need not fit memory."""

from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow as pa


def connect(memory_bytes: int, temp_folder: Path, num_threads: int) -> duckdb.DuckDBPyConnection:
    """An in-memory database that keeps the order of rows.

    Args:
        memory_bytes: Most memory it takes; beyond, it spills to disk.
        temp_folder: Where it spills; made when needed.
        num_threads: Threads it runs.
    """
    return duckdb.connect(
        config={
            "memory_limit": f"{memory_bytes}B",
            "temp_directory": str(temp_folder),
            "threads": num_threads,
            "preserve_insertion_order": True,
        }
    )


def select(
    connection: duckdb.DuckDBPyConnection,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    query: str,
) -> pa.RecordBatchReader:
    """Run a query on the table `stream`.

    Args:
        connection: Sorts and groups, spilling to disk.
        schema: Of the table.
        batches: Its rows; read once, while the result is read.
        query: Reads `stream` once.
    """
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    relation = connection.cursor().from_arrow(reader).query("stream", query)
    return pa.RecordBatchReader.from_stream(relation)


def select_values(
    connection: duckdb.DuckDBPyConnection,
    value_type: pa.DataType,
    arrays: Iterable[pa.Array],
    query: str,
) -> pa.RecordBatchReader:
    """Run a query on the table `stream`, whose only column is `value`, as `select` does."""
    schema = pa.schema([("value", value_type)])
    batches = (pa.record_batch([array], schema=schema) for array in arrays)
    return select(connection, schema, batches, query)
