"""What `prepare` learns from the train rows besides the vocabularies: statistics, bucket edges.

Invariant: the result depends on the train rows, their order and the schema alone, not on how the
rows are cut into files, row groups and blocks. `largest_value` alone looks at all rows.
"""

import math
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import DenseStatistics
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature
from fastdlrm.data.features import filled_numbers, present_values, require_finite
from fastdlrm.data.split import TRAIN, Splits
from fastdlrm.data.sql import select_values
from fastdlrm.data.staged import StagedRows, dense_column, sparse_column
from fastdlrm.errors import DataError


def require_values(rows: StagedRows, splits: Splits, schema: Schema) -> None:
    """Refuse columns without any value in train; reads no further than the first values.

    Raises:
        DataError: Naming them.
    """
    empty = [dense_column(f.name) for f in schema.dense]
    empty += [sparse_column(f.name) for f in schema.sparse]
    for chunk in rows.chunks:
        for block in rows.read(chunk, [*empty, *splits.columns]):
            is_train = pa.array(splits.assign(block) == TRAIN)
            train = block.rows.filter(is_train)
            empty = [c for c in empty if len(present_values(train.column(c))) == 0]
        if not empty:
            return
    names = ", ".join(column[2:] for column in empty)
    raise DataError(
        f"features without a single value in the train rows: {names}; drop them from "
        "data.dense and data.sparse, or check data.source.missing and data.source.columns"
    )


def fit_statistics(rows: StagedRows, splits: Splits, feature: DenseFeature) -> DenseStatistics:
    """Mean and standard deviation over train, 0 for a feature that is the same in every row.

    Raises:
        DataError: A value is infinite or beyond float32.
    """
    state = np.zeros(3)
    for values in splits.train_values(rows, dense_column(feature.name)):
        numbers = filled_numbers(feature, values)
        require_finite(feature, numbers)
        _accumulate(numbers, state)
    num_rows, mean, squares = state.tolist()
    return DenseStatistics(mean=mean, std=math.sqrt(squares / num_rows))


def fit_edges(
    rows: StagedRows,
    splits: Splits,
    feature: SparseFeature,
    connection: duckdb.DuckDBPyConnection,
) -> tuple[float, ...]:
    """The values at sorted places floor(j n / num_quantiles), each once, above the least.

    Args:
        rows: Staged rows.
        splits: Says which rows are train.
        feature: Of key "quantile".
        connection: Sorts and groups, spilling to disk.
    """
    train = splits.train_values(rows, sparse_column(feature.name))
    query = f"""
        WITH counts AS MATERIALIZED (
            SELECT value, count(*) AS num FROM stream WHERE isfinite(value) GROUP BY value
        ), places AS (
            SELECT value, sum(num) OVER (ORDER BY value) AS num_upto FROM counts
        ), wanted AS (
            SELECT j * (SELECT sum(num) FROM counts) // {feature.num_quantiles} AS place
            FROM range(1, {feature.num_quantiles}) AS steps(j)
        )
        SELECT DISTINCT value FROM wanted ASOF JOIN places ON wanted.place < places.num_upto
        WHERE value > (SELECT min(value) FROM counts) ORDER BY value
    """
    values = map(present_values, train)
    found = select_values(connection, pa.float64(), values, query).read_all()
    return tuple(found.column(0).to_pylist())


def largest_value(rows: StagedRows, features: Sequence[SparseFeature]) -> int:
    """The largest whole number that features of key "int" hold in all rows; at least 0."""
    columns = [sparse_column(feature.name) for feature in features]
    largest = 0
    for block in rows.blocks(columns):
        for column in columns:
            values = present_values(block.rows.column(column))
            largest = max(largest, pc.max(values).as_py() or 0)
    return largest


@njit(cache=True, nogil=True)
def _accumulate(numbers: NDArray[np.float64], state: NDArray[np.float64]) -> None:
    """Add numbers to (count, mean, sum of squared deviations), one after the other.

    Source: Welford 1962, Technometrics 4(3).
    """
    count, mean, squares = state[0], state[1], state[2]
    for number in numbers:
        count += 1
        deviation = number - mean
        mean += deviation / count
        squares += deviation * (number - mean)
    state[0], state[1], state[2] = count, mean, squares
