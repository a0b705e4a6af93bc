"""Raw columns -> staged columns: one type a column, and what is wrong with each row that has none.

Staged columns are named by `fastdlrm.data.staged`: the label (uint8), each dense feature (float64),
each sparse feature (hex: uint64, string: string, quantile: float64, the others int64), a list of
those for a bag and of float32 for its weights, and the time (float64, or int64 microseconds since
1970 in UTC for dates). Missing is null, in a bag left out; a bag itself is never null.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastdlrm.contracts.schema import CALENDAR_KEYS, Key, Label, Schema, SparseFeature
from fastdlrm.data.bags import Bags, parse_bags
from fastdlrm.data.calendar import calendar_ids
from fastdlrm.data.staged import LABEL, TIME, dense_column, sparse_column, weight_column
from fastdlrm.data.values import (
    PARSERS,
    Flaws,
    Typed,
    beyond_float32,
    shown,
    texts,
    time_type,
    times,
)
from fastdlrm.data.values import without_missing as present
from fastdlrm.errors import ConfigError, DataError


class Converter:
    """Converts the batches of one raw file, in order.

    Args:
        name: The file, for messages.
        schema: What the columns mean.
        missing: Texts that stand for a missing value.
        labelled: Whether there is a label column.
        time_column: Raw column that orders the rows; empty for none.
    """

    def __init__(
        self,
        name: str,
        schema: Schema,
        missing: Sequence[str],
        *,
        labelled: bool,
        time_column: str,
    ) -> None:
        self._name = name
        self._schema = schema
        self._missing = missing
        self._labelled = labelled
        self._time_column = time_column
        self._time_type: pa.DataType | None = None

    @property
    def columns(self) -> list[str]:
        """The raw columns that are read, each once."""
        names = [self._schema.label.column] if self._labelled else []
        names += [feature.column for feature in self._schema.dense]
        for feature in self._schema.sparse:
            names += [feature.column, feature.weight_column]
        return list(dict.fromkeys(name for name in [*names, self._time_column] if name))

    def convert(self, raw: pa.RecordBatch) -> tuple[pa.RecordBatch, Flaws]:
        """Convert one batch.

        Args:
            raw: The raw columns.

        Returns:
            The staged columns, as many rows; and by row what is wrong with it, naming the column.
            What a wrong row's columns hold is undefined.

        Raises:
            DataError: A column's type cannot be what the schema says it is.
            ConfigError: A bag of a text column has no separator.
        """
        staged: dict[str, pa.Array] = {}
        flaws: Flaws = {}
        parsed: dict[tuple[str, str, str], Typed] = {}

        def add(name: str, column: str, typed: Typed) -> None:
            staged[name] = typed[0]
            for row, what in typed[1].items():
                flaws.setdefault(row, f"column {column!r}: {what}")

        def parse(column: str, key: Key, time_format: str = "") -> Typed:
            how = (column, key, time_format)
            if how not in parsed:
                parsed[how] = self._plain(column, key, raw.column(column), time_format)
            return parsed[how]

        if self._labelled:
            column = self._schema.label.column
            add(LABEL, column, self._label(raw.column(column)))
        for dense in self._schema.dense:
            typed, wrong = parse(dense.column, "quantile")
            if dense.transform == "none":  # what a transform makes of it is known after the fit
                wrong = beyond_float32(raw.column(dense.column), typed) | wrong
            add(dense_column(dense.name), dense.column, (typed, wrong))
        for sparse in self._schema.sparse:
            name = sparse_column(sparse.name)
            if not sparse.bag:
                add(name, sparse.column, parse(sparse.column, sparse.key, sparse.time_format))
                continue
            bags = self._bags(sparse, raw)
            add(name, sparse.column, bags.ids)
            if bags.weights is not None:
                add(weight_column(sparse.name), sparse.weight_column, bags.weights)
        if self._time_column:
            add(TIME, self._time_column, self._time(raw.column(self._time_column)))
        return pa.RecordBatch.from_pydict(staged), flaws

    def _plain(self, column: str, key: Key, values: pa.Array, time_format: str) -> Typed:
        is_time = key in CALENDAR_KEYS
        self._require_readable(column, "time" if is_time else key, values.type)
        known = present(values, self._missing)
        return calendar_ids(known, key, time_format) if is_time else PARSERS[key](known)

    def _label(self, values: pa.Array) -> Typed:
        label = self._schema.label
        self._require_readable(label.column, "string", values.type)
        text, _ = texts(values)
        is_positive = pc.is_in(text, pa.array(label.positive, pa.string()))
        is_known = pc.or_(is_positive, pc.is_in(text, pa.array(label.negative, pa.string())))
        unknown = np.flatnonzero(~is_known.to_numpy(zero_copy_only=False))
        flaws = {int(row): self._label_flaw(label, text[int(row)].as_py()) for row in unknown}
        return is_positive.cast(pa.uint8()), flaws

    def _label_flaw(self, label: Label, text: str | None) -> str:
        if text is None or text in self._missing:
            return "is missing"
        positive, negative = (" or ".join(map(repr, v)) for v in (label.positive, label.negative))
        return f"{shown(text)} is neither positive ({positive}) nor negative ({negative})"

    def _bags(self, feature: SparseFeature, raw: pa.RecordBatch) -> Bags:
        ids = self._lists(feature, feature.column, feature.key, raw)
        if not feature.is_weighted:
            return parse_bags(ids, None, feature.key, self._missing)
        weights = self._lists(feature, feature.weight_column, "quantile", raw)
        return parse_bags(ids, weights, feature.key, self._missing)

    def _lists(
        self, feature: SparseFeature, column: str, key: str, raw: pa.RecordBatch
    ) -> pa.ListArray:
        values = raw.column(column)
        if pa.types.is_list(values.type):
            self._require_readable(column, key, values.type.value_type)
            return values
        self._require_readable(column, "hex", values.type)
        if not feature.separator:
            raise ConfigError(
                f"data.sparse: {feature.name!r} is a bag, and {self._name} holds column "
                f"{column!r} as text; set separator to what stands between its ids"
            )
        return pc.split_pattern(present(values, self._missing), feature.separator)

    def _time(self, values: pa.Array) -> Typed:
        """Times; the first one of the file decides how all of them are written."""
        values = present(values, self._missing)
        self._require_readable(self._time_column, "time", values.type)
        self._time_type = self._time_type or time_type(values)
        typed, flaws = times(values, self._time_type)
        for row in np.flatnonzero(typed.is_null().to_numpy(zero_copy_only=False)):
            flaws.setdefault(int(row), "is missing; a split by time needs it")
        return typed, flaws

    def _require_readable(self, column: str, key: str, found: pa.DataType) -> None:
        """Check that values of a type can be parsed as a key; dense features are as "quantile"."""
        types = pa.types
        is_date = types.is_timestamp(found) or types.is_date(found)
        is_text = types.is_string(found)
        is_number = (
            types.is_boolean(found)
            or types.is_integer(found)
            or types.is_floating(found)
            or types.is_decimal(found)
        )
        is_readable = {
            "hex": is_text,
            "int": is_text or is_number,
            "quantile": is_text or is_number,
            "string": is_text or is_number or types.is_temporal(found) or types.is_binary(found),
            "time": is_text or is_number or is_date,
        }
        if not is_readable[key]:
            allowed = {
                "hex": "text",
                "string": "plain values",
                "time": "numbers, dates or text",
            }.get(key, "numbers or text")
            raise DataError(
                f"{self._name}: column {column!r} is of type {found}, {allowed} can be read here; "
                "declare it otherwise, or convert the file"
            )
