"""What `prepare` learns from the train rows: the `Encoding`, and the vocabularies on disk.

Invariant: the result depends on the train rows, their order and the schema alone, not on how the
rows are cut into files, row groups and blocks. Encodings "reference" and "identity" look at all
rows.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import HASH_VERSION, DenseStatistics, Encoding, TableEncoding
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature, Table
from fastdlrm.data.features import filled_numbers, present_values, require_finite
from fastdlrm.data.first_seen import first_seen_vocabulary
from fastdlrm.data.split import TRAIN, Splits
from fastdlrm.data.sql import select
from fastdlrm.data.staged import StagedRows, dense_column, sparse_column
from fastdlrm.data.threads import map_in_order
from fastdlrm.data.vocabulary import Edges, fit_vocabulary, write_vocabulary
from fastdlrm.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitter:
    """Fits one dataset.

    Attributes:
        rows: Staged rows.
        splits: Says which rows are train.
        schema: Features and tables.
        folder: The artifact that gets the vocabularies.
        connection: Sorts and groups, spilling to disk.
        memory_bytes: Most memory to take, that of the connection aside.
        num_workers: Tables fitted at once.
    """

    rows: StagedRows
    splits: Splits
    schema: Schema
    folder: Path
    connection: duckdb.DuckDBPyConnection
    memory_bytes: int
    num_workers: int

    def fit(self, progress: Callable[[float], None]) -> Encoding:
        """Fit statistics, bucket edges and vocabularies.

        Args:
            progress: Called with the share of tables done.

        Raises:
            DataError: A column has no value in train, or a vocabulary cannot be made.
        """
        self._require_values()
        scaled = [f for f in self.schema.dense if f.transform == "standardize"]
        bucketised = [f for f in self.schema.sparse if f.key == "quantile"]
        dense = {feature.name: self._statistics(feature) for feature in scaled}
        edges = {feature.name: self._quantile_edges(feature) for feature in bucketised}
        tables: dict[str, TableEncoding] = {}
        work = map_in_order(lambda t: self._table(t, edges), self.schema.tables, self.num_workers)
        for table, encoding in zip(self.schema.tables, work, strict=True):
            tables[table.name] = encoding
            progress(len(tables) / len(self.schema.tables))
        return Encoding(hash_version=HASH_VERSION, dense=dense, quantiles=edges, tables=tables)

    def _require_values(self) -> None:
        """Refuse columns without any value in train; reads no further than the first values."""
        empty = [dense_column(f.name) for f in self.schema.dense]
        empty += [sparse_column(f.name) for f in self.schema.sparse]
        for chunk in self.rows.chunks:
            for block in self.rows.read(chunk, [*empty, *self.splits.columns]):
                is_train = pa.array(self.splits.assign(block) == TRAIN)
                train = block.rows.filter(is_train)
                empty = [c for c in empty if len(present_values(train.column(c))) == 0]
            if not empty:
                return
        names = ", ".join(column[2:] for column in empty)
        raise DataError(
            f"features without a single value in the train rows: {names}; drop them from "
            "data.dense and data.sparse, or check data.source.missing and data.source.columns"
        )

    def _statistics(self, feature: DenseFeature) -> DenseStatistics:
        state = np.zeros(3)
        for values in self.splits.train_values(self.rows, dense_column(feature.name)):
            numbers = filled_numbers(feature, values)
            require_finite(feature, numbers)
            _accumulate(numbers, state)
        num_rows, mean, squares = state.tolist()
        std = math.sqrt(squares / num_rows)
        if std == 0:
            logger.warning(
                "dense feature %r is %g in every train row: it tells nothing; its standard "
                "deviation is taken as 1",
                feature.name,
                mean,
            )
        return DenseStatistics(mean=mean, std=std or 1.0)

    def _quantile_edges(self, feature: SparseFeature) -> tuple[float, ...]:
        """The values at sorted places floor(j n / num_quantiles), each once, above the least."""
        column = sparse_column(feature.name)
        train = self.splits.train_values(self.rows, column)
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
        found = select(self.connection, pa.float64(), values, query).read_all()
        return tuple(found.column(0).to_pylist())

    def _table(self, table: Table, edges: Edges) -> TableEncoding:
        if table.encoding == "hash":
            return TableEncoding(num_embeddings=table.max_rows, vocabulary="", coverage=1.0)
        features = [f for f in self.schema.sparse if f.table == table.name]
        memory_bytes = self.memory_bytes // self.num_workers
        if table.encoding == "identity":
            num_rows = table.max_rows or self._largest(features) + 1
            return TableEncoding(num_embeddings=num_rows, vocabulary="", coverage=1.0, first_id=0)
        if table.encoding == "reference":
            vocabulary = first_seen_vocabulary(table, features[0], self.rows, memory_bytes)
        else:
            vocabulary = fit_vocabulary(
                table,
                features,
                self.rows,
                self.splits,
                edges=edges,
                connection=self.connection,
                memory_bytes=memory_bytes,
            )
        return write_vocabulary(
            self.folder, table, vocabulary, features[0].key, edges.get(features[0].name, ())
        )

    def _largest(self, features: Sequence[SparseFeature]) -> int:
        """The largest whole number that the features hold in all rows; at least 0."""
        columns = [sparse_column(feature.name) for feature in features]
        largest = 0
        for block in self.rows.blocks(columns):
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
