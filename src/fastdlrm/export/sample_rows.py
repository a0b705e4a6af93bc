"""Raw rows drawn from an encoding: what a client may send, unseen and missing values included.

They are golden rows, warm up a server and show what a request looks like; they say nothing of how
often values go together.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import CALENDAR_KEYS, Schema, SparseFeature
from fastdlrm.data.vocabulary import read_counts, read_values

NUMBERS = ("0", "1", "2", "3", "5", "8", "13", "40", "120", "999", "4500", "-1", "0.5", "1e3")
STRICT_KEYS = ("int", "hex", "string", "quantile")
MISSING_SHARE = 0.06
UNSEEN_SHARE = 0.06
MAX_BAG = 6
FIRST_SECOND, LAST_SECOND = 946_684_800, 1_893_456_000
"""Times are drawn between the years 2000 and 2030."""


def raw_columns(schema: Schema) -> list[str]:
    """The raw columns that a row to be scored has, each once: no label."""
    names = [feature.column for feature in schema.dense]
    for feature in schema.sparse:
        names += [feature.column, feature.weight_column]
    return list(dict.fromkeys(name for name in names if name))


def draw_rows(
    folder: Path,
    schema: Schema,
    encoding: Encoding,
    num_rows: int,
    seed: int,
    *,
    missing: Sequence[str] = ("",),
) -> pa.RecordBatch:
    """Draw raw rows.

    Args:
        folder: Holds the vocabularies.
        schema: Features.
        encoding: What was fitted.
        num_rows: Rows.
        seed: The same seed gives the same rows.
        missing: Texts that stand for a missing value; values of key "string" are missing only where
            the empty text is among them, since a request cannot tell the two apart.

    Returns:
        One column a raw column: text, or a list of texts where a bag has no separator; null where
        missing.

    Raises:
        DataError: A vocabulary is missing or damaged.
    """
    draw = _Draw(folder, schema, encoding, num_rows, np.random.default_rng(seed), "" in missing)
    columns: dict[str, pa.Array] = {}
    for feature in sorted(schema.sparse, key=lambda f: _strictness(schema, f)):
        if feature.column not in columns:
            columns |= draw.bags(feature) if feature.bag else {feature.column: draw.ids(feature)}
    for dense in schema.dense:
        if dense.column not in columns:
            columns[dense.column] = draw.numbers()
    return pa.RecordBatch.from_pydict({name: columns[name] for name in raw_columns(schema)})


def _strictness(schema: Schema, feature: SparseFeature) -> int:
    """Orders features by what they refuse: a column that several read has values for all."""
    if feature.key in CALENDAR_KEYS or schema.table_of(feature).encoding == "identity":
        return -1
    return STRICT_KEYS.index(feature.key)


class _Draw:
    """Draws the columns of some rows."""

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        encoding: Encoding,
        num_rows: int,
        generator: np.random.Generator,
        has_missing_texts: bool,
    ) -> None:
        self._folder = folder
        self._schema = schema
        self._encoding = encoding
        self._num_rows = num_rows
        self._random = generator
        self._has_missing_texts = has_missing_texts

    def numbers(self) -> pa.Array:
        """Numbers as text."""
        drawn = self._random.choice(NUMBERS, self._num_rows).tolist()
        return pa.array(self._with_gaps(drawn), pa.string())

    def ids(self, feature: SparseFeature) -> pa.Array:
        """A value a row."""
        values: list[Any] = self._values(feature, self._num_rows)
        may_lack = feature.key != "string" or self._has_missing_texts
        if may_lack and self._schema.table_of(feature).encoding not in ("identity", "reference"):
            values = self._with_gaps(values)
        return pa.array(values, pa.string())

    def bags(self, feature: SparseFeature) -> dict[str, pa.Array]:
        """A bag a row, and its weights."""
        lengths = self._random.integers(0, MAX_BAG + 1, self._num_rows)
        ends = np.cumsum(lengths)
        ids = self._values(feature, int(lengths.sum()))
        columns = {feature.column: ids}
        if feature.is_weighted:
            weights = self._random.integers(1, 9, len(ids)) / 4
            columns[feature.weight_column] = [f"{weight:g}" for weight in weights]
        return {name: self._joined(feature, of, ends) for name, of in columns.items()}

    def _joined(self, feature: SparseFeature, values: list[str], ends: np.ndarray) -> pa.Array:
        bags = [part.tolist() for part in np.split(np.array(values, dtype=object), ends[:-1])]
        if not feature.separator:
            return pa.array(bags, pa.list_(pa.string()))
        return pa.array([feature.separator.join(bag) for bag in bags], pa.string())

    def _values(self, feature: SparseFeature, count: int) -> list[str]:
        """Values, each as often as in train, some unseen."""
        table = self._schema.table_of(feature)
        fitted = self._encoding.tables[table.name]
        if feature.key in CALENDAR_KEYS:
            return self._times(feature.time_format, count)
        if feature.key == "quantile":
            return self._random.choice(NUMBERS, count).tolist()
        if table.encoding == "identity":
            skewed = self._random.random(count) ** 3
            return [str(int(place)) for place in skewed * fitted.num_embeddings]
        unseen = self._random.integers(10**8, 10**9, count)
        if not fitted.vocabulary:
            return [str(value) for value in unseen]
        size = fitted.num_embeddings - fitted.first_id
        if not size:
            return [str(value) for value in unseen]
        shares = np.cumsum(read_counts(self._folder, fitted), dtype=np.float64)
        drawn = self._random.random(count) * shares[-1]
        places = np.searchsorted(shares, drawn, side="right").clip(max=size - 1)
        values = read_values(self._folder, fitted, places)
        if table.encoding == "reference":
            return values
        is_unseen = self._random.random(count) < UNSEEN_SHARE
        return [
            str(other) if is_new else value
            for value, other, is_new in zip(values, unseen, is_unseen, strict=True)
        ]

    def _times(self, time_format: str, count: int) -> list[str]:
        seconds = self._random.integers(FIRST_SECOND, LAST_SECOND, count).tolist()
        if time_format == "seconds":
            return [str(second) for second in seconds]
        times = [datetime.fromtimestamp(second, UTC) for second in seconds]
        if time_format == "iso":
            return [time.strftime("%Y-%m-%dT%H:%M:%S") for time in times]
        return [time.strftime(time_format) for time in times]

    def _with_gaps(self, values: list[Any]) -> list[Any]:
        is_missing = self._random.random(len(values)) < MISSING_SHARE
        return [None if gap else value for value, gap in zip(values, is_missing, strict=True)]
