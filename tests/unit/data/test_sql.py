"""DuckDB's settings, and a query over a stream."""

from pathlib import Path

import pyarrow as pa

from fastdlrm.data.sql import connect, select, select_values


def test_a_connection_keeps_its_limits(tmp_path: Path) -> None:
    with connect(2**30, tmp_path / "spill", 1) as connection:
        settings = "memory_limit", "temp_directory", "threads"
        query = ", ".join(f"current_setting('{name}')" for name in settings)
        found = connection.sql(f"SELECT {query}").fetchall()
    assert found == [("1.0 GiB", str(tmp_path / "spill"), 1)]


def test_a_query_reads_the_stream_once(tmp_path: Path) -> None:
    """3 + 1 + 2 + 3: each value once, 3 twice."""
    arrays = iter([pa.array([3, 1], pa.int64()), pa.array([2, 3], pa.int64())])
    query = "SELECT value, count(*) AS num FROM stream GROUP BY value ORDER BY value"
    with connect(2**30, tmp_path / "spill", 1) as connection:
        found = select_values(connection, pa.int64(), arrays, query).read_all()
    assert found.to_pydict() == {"value": [1, 2, 3], "num": [1, 1, 2]}


def test_columns_go_together(tmp_path: Path) -> None:
    schema = pa.schema([("value", pa.string()), ("count", pa.uint64())])
    batches = [
        pa.record_batch([pa.array(["x", "y"]), pa.array([1, 2], pa.uint64())], schema=schema),
        pa.record_batch([pa.array(["x"]), pa.array([4], pa.uint64())], schema=schema),
    ]
    query = 'SELECT value, sum("count")::UBIGINT AS n FROM stream GROUP BY value ORDER BY value'
    with connect(2**30, tmp_path / "spill", 1) as connection:
        found = select(connection, schema, batches, query).read_all()
    assert found.to_pydict() == {"value": ["x", "y"], "n": [5, 2]}
