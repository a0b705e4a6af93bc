"""Staged rows -> encoded rows: the one encoder of `prepare`, `predict` and the server.

Encoded columns, in this order: `label` (uint8, where known); each dense feature (float32); each
sparse feature (ids in the smallest unsigned type that holds its table's rows, a list of them for a
bag), followed by `{feature}.weights` (list of float32) where ids carry weights. There are no nulls.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import (
    FIRST_ID,
    MISSING,
    OUT_OF_VOCABULARY,
    DenseFeature,
    Schema,
    SparseFeature,
    Table,
    Transform,
)
from fastdlrm.data.features import (
    buffer_view,
    filled_numbers,
    key_values,
    missing_values,
    reference_keys,
    require_finite,
)
from fastdlrm.data.keys import Keys, write_buckets
from fastdlrm.data.keytable import KeyTable
from fastdlrm.data.staged import LABEL, dense_column, sparse_column, weight_column
from fastdlrm.data.vocabulary import read_keys
from fastdlrm.errors import ConfigError, DataError


def encoded_schema(schema: Schema, encoding: Encoding, labelled: bool = True) -> pa.Schema:
    """Names and types of the encoded columns.

    Raises:
        ConfigError: Two columns would have the same name, or a table has too many rows.
    """
    fields = [pa.field("label", pa.uint8())] if labelled else []
    fields += [pa.field(feature.name, pa.float32()) for feature in schema.dense]
    for feature in schema.sparse:
        id_type = _id_type(feature.table, encoding)
        fields.append(pa.field(feature.name, pa.list_(id_type) if feature.bag else id_type))
        if feature.is_weighted:
            fields.append(pa.field(f"{feature.name}.weights", pa.list_(pa.float32())))
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1 or (name == "label" and not labelled):
            raise ConfigError(
                f"schema: the dataset would have two columns {name!r}; `label` and "
                "`{feature}.weights` are taken: rename the feature in data.sparse.name"
            )
    return pa.schema(fields)


def transformed(
    feature: DenseFeature, numbers: NDArray[np.float64], encoding: Encoding
) -> NDArray[np.float32]:
    """A dense feature's numbers as the model sees them; infinite where beyond float32."""
    if feature.transform != "standardize":
        return transform_numbers(feature.transform, numbers)
    statistics = encoding.dense[feature.name]
    return transform_numbers("standardize", numbers, statistics.mean, statistics.std)


def transform_numbers(
    transform: Transform,
    numbers: NDArray[np.float64],
    mean: float | NDArray[np.float64] = 0.0,
    std: float | NDArray[np.float64] = 1.0,
) -> NDArray[np.float32]:
    """Numbers of one feature or of several as the model sees them; infinite beyond float32.

    Args:
        transform: Of the features.
        numbers: Of any shape.
        mean: For "standardize", of a shape that broadcasts to the numbers'.
        std: As `mean`.
    """
    if transform == "log1p":
        numbers = np.log1p(np.maximum(numbers, 0.0))
    elif transform == "standardize":
        numbers = (numbers - mean) / std
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def require_fit(encoding: Encoding, memory_bytes: int) -> int:
    """Check that an encoder's vocabularies fit the memory; returns the bytes they take.

    Raises:
        DataError: They do not.
    """
    sizes = {
        name: KeyTable.bytes_for(table.num_embeddings)
        for name, table in encoding.tables.items()
        if table.vocabulary
    }
    total = sum(sizes.values())
    if total > memory_bytes:
        largest = max(sizes, key=lambda name: sizes[name])
        raise DataError(
            f"the vocabularies need {total >> 20} MiB, {memory_bytes >> 20} MiB are left for them; "
            f"raise --memory, or min_count or max_rows of the largest, table {largest!r}"
        )
    return total


class Encoder:
    """Everything fitted, ready to encode; safe to use from several threads."""

    def __init__(self, schema: Schema, encoding: Encoding, tables: Mapping[str, KeyTable]) -> None:
        """Put the parts together.

        Args:
            schema: Features and tables.
            encoding: What was fitted.
            tables: By name, those with a vocabulary.
        """
        self._schema = schema
        self._encoding = encoding
        self._tables = tables
        self._types = {
            labelled: encoded_schema(schema, encoding, labelled) for labelled in (True, False)
        }

    @classmethod
    def load(cls, folder: Path, schema: Schema, encoding: Encoding) -> "Encoder":
        """Read the vocabularies of an artifact.

        Args:
            folder: A dataset, or any other artifact with the vocabularies.
            schema: Features and tables.
            encoding: What was fitted.

        Raises:
            DataError: A vocabulary is missing or damaged.
        """
        tables = {
            name: KeyTable(read_keys(folder, table))
            for name, table in encoding.tables.items()
            if table.vocabulary
        }
        return cls(schema, encoding, tables)

    def encode(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Encode rows.

        Args:
            rows: The staged columns of every feature, and of the label where it is known; other
                columns are left alone.

        Returns:
            As many rows, in the same order.

        Raises:
            DataError: A dense value is infinite or beyond float32, or an id has no row under
                encoding "reference" or "identity".
        """
        labelled = LABEL in rows.schema.names
        columns = [rows.column(LABEL)] if labelled else []
        columns += [self._dense(f, rows.column(dense_column(f.name))) for f in self._schema.dense]
        for feature in self._schema.sparse:
            encode = self._bags if feature.bag else self._ids
            columns.append(encode(feature, rows.column(sparse_column(feature.name))))
            if feature.is_weighted:
                columns.append(_compact(rows.column(weight_column(feature.name))))
        return pa.RecordBatch.from_arrays(columns, schema=self._types[labelled])

    def _dense(self, feature: DenseFeature, values: pa.Array) -> pa.Array:
        numbers = filled_numbers(feature, values)
        encoded = transformed(feature, numbers, self._encoding)
        require_finite(feature, encoded)
        return pa.array(encoded)

    def _ids(self, feature: SparseFeature, values: pa.Array) -> pa.Array:
        id_type = _id_type(feature.table, self._encoding)
        table = self._schema.table_of(feature)
        if table.encoding == "reference":
            return pa.array(self._reference_ids(feature, table, values)).cast(id_type)
        if table.encoding == "identity":
            return pa.array(self._identity_ids(feature, values)).cast(id_type)
        return self._keyed_ids(feature, values, id_type)

    def _reference_ids(self, feature: SparseFeature, table: Table, values: pa.Array) -> Keys:
        keys = reference_keys(values, table.max_rows)
        rows = np.empty(len(keys), dtype=np.uint64)
        self._tables[feature.table].write_ids(keys, rows)
        unknown = np.flatnonzero(rows == OUT_OF_VOCABULARY)
        if len(unknown):
            raise DataError(
                f"sparse feature {feature.name!r}: no row for {len(unknown)} of {len(keys)} "
                f"values, the first {int(keys[unknown[0]]):x}; encoding 'reference' has rows for "
                "what was prepared alone: prepare with these rows, or with encoding 'vocabulary'"
            )
        return rows - np.uint64(FIRST_ID)

    def _identity_ids(self, feature: SparseFeature, values: pa.Array) -> Keys:
        rows = buffer_view(values, np.int64)
        num_embeddings = self._encoding.tables[feature.table].num_embeddings
        bad = (rows < 0) | (rows >= num_embeddings)
        missing = missing_values(values)
        if missing is not None:
            bad |= missing
        if bad.any():
            found = values[int(np.flatnonzero(bad)[0])].as_py()
            raise DataError(
                f"sparse feature {feature.name!r}: no row for {int(bad.sum())} of {len(rows)} "
                f"values, the first {'a missing one' if found is None else found}; encoding "
                f"'identity' takes 0 to {num_embeddings - 1}: correct them, raise max_rows, or use "
                "encoding 'vocabulary'"
            )
        return rows.astype(np.uint64)

    def _keyed_ids(
        self, feature: SparseFeature, values: pa.Array, id_type: pa.DataType
    ) -> pa.Array:
        keys = key_values(feature, values, self._encoding.quantiles.get(feature.name, ()))
        table = self._encoding.tables[feature.table]
        ids = np.empty(len(keys), dtype=id_type.to_pandas_dtype())
        if table.vocabulary:
            self._tables[feature.table].write_ids(keys, ids)
        else:
            num_buckets = np.uint64(table.num_embeddings - FIRST_ID)
            write_buckets(keys, num_buckets, np.uint64(FIRST_ID), ids)
        missing = missing_values(values)
        if missing is not None:
            ids[missing] = MISSING
        return pa.array(ids)

    def _bags(self, feature: SparseFeature, bags: pa.Array) -> pa.Array:
        ids = self._ids(feature, bags.flatten())
        return pa.ListArray.from_arrays(_offsets_from_zero(bags), ids)


def _id_type(table: str, encoding: Encoding) -> pa.DataType:
    num_embeddings = encoding.tables[table].num_embeddings
    for id_type, bits in ((pa.uint8(), 8), (pa.uint16(), 16), (pa.uint32(), 32)):
        if num_embeddings <= 1 << bits:
            return id_type
    raise ConfigError(
        f"table {table!r}: {num_embeddings} rows; {1 << 32} is the most, set max_rows to fewer"
    )


def _compact(bags: pa.Array) -> pa.Array:
    """The same bags in buffers of their own size."""
    return pa.ListArray.from_arrays(_offsets_from_zero(bags), bags.flatten())


def _offsets_from_zero(bags: pa.Array) -> pa.Array:
    offsets = bags.offsets.to_numpy()
    return pa.array(offsets - offsets[0]) if len(offsets) else pa.array([0], pa.int32())
