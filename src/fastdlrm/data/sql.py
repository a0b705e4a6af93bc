"""SQL over a stream of values that need not fit memory."""

from collections.abc import Iterable

import duckdb
import pyarrow as pa


def select(
    connection: duckdb.DuckDBPyConnection,
    value_type: pa.DataType,
    arrays: Iterable[pa.Array],
    query: str,
) -> pa.RecordBatchReader:
    """Run a query on the table `stream`, whose only column is `value`.

    Args:
        connection: Sorts and groups, spilling to disk.
        value_type: Of the values.
        arrays: The values; read once, while the result is read.
        query: Reads `stream` once.
    """
    batches = (pa.record_batch([array], names=["value"]) for array in arrays)
    reader = pa.RecordBatchReader.from_batches(pa.schema([("value", value_type)]), batches)
    relation = connection.cursor().from_arrow(reader).query("stream", query)
    return pa.RecordBatchReader.from_stream(relation)
