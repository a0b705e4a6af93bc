"""The columns of a click log and what each means to the model.

Invariants: names are unique within dense and within sparse features; every sparse feature names
a table that exists; the label's positive and negative values do not overlap.
"""

from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError

Transform = Literal["log1p", "standardize", "none"]
"""log1p: log(1 + max(x, 0)); standardize: (x - mean) / std over train; none: x as it is."""

Key = Literal["string", "hex", "int", "quantile", "hour_of_day", "day_of_week"]
"""How a raw value becomes a 64-bit key: text hashed, hexadecimal digits, an integer, the index of
the train-quantile bucket that holds a number, or of a time in UTC its hour (0 .. 23) or its weekday
(0 for Monday .. 6)."""

CALENDAR_KEYS = ("hour_of_day", "day_of_week")

IdEncoding = Literal["vocabulary", "hash", "reference", "identity"]
"""vocabulary: the values seen in train, most frequent first; hash: the key modulo the rows;
reference: the values of all rows, validation and test too, in the order of first sight, as the DLRM
reference numbers them; identity: the value is the row."""

OUT_OF_VOCABULARY = 0
"""Row of a table for values not in its vocabulary. It and MISSING are rows of the encodings
"vocabulary" and "hash" alone; the others reserve none."""
MISSING = 1
"""Row of a table for empty values of a single-id feature."""
FIRST_ID = 2
"""First row of a table that stands for a value."""


class DenseFeature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number fed to the bottom MLP."""

    name: str
    """Name in the dataset."""
    column: str
    """Name in the raw file."""
    transform: Transform
    """Applied after fill."""
    fill: float
    """Takes the place of a missing or NaN value, before the transform."""


class SparseFeature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A categorical value, or a bag of them, looked up in an embedding table."""

    name: str
    """Name in the dataset."""
    column: str
    """Name in the raw file."""
    table: str
    """Embedding table that holds the feature's rows; several features may share one."""
    key: Key
    """How raw values become 64-bit keys."""
    num_quantiles: int = 0
    """Buckets of key "quantile"; 0 for the other keys."""
    bag: bool = False
    """Whether a sample holds any number of ids (true) or exactly one (false)."""
    separator: str = ""
    """Between the values of a bag in a text column; empty where the column is a Parquet list."""
    weight_column: str = ""
    """Raw column with one weight an id of a bag; empty for an unweighted feature."""
    time_format: str = ""
    """How the raw column writes times, for the keys hour_of_day and day_of_week: "seconds" since
    1970, "iso" for ISO 8601, or a pattern of strptime such as "%y%m%d%H"; empty otherwise."""

    @property
    def is_weighted(self) -> bool:
        """Whether each id carries a weight."""
        return bool(self.weight_column)


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An embedding table's ids."""

    name: str
    """Name in the dataset."""
    encoding: IdEncoding
    """How keys become rows."""
    min_count: int
    """Occurrences in train below which a value is out of vocabulary; 1 keeps all."""
    max_rows: int
    """vocabulary: most rows, the two reserved ones included, the most frequent values kept; hash,
    identity: the exact number of rows; reference: keys are taken modulo it. 0: no limit (not with
    hash; with identity the largest value of all rows decides)."""


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be predicted."""

    column: str
    """Name in the raw file."""
    positive: tuple[str, ...]
    """Raw values that count as 1, as text."""
    negative: tuple[str, ...]
    """Raw values that count as 0, as text."""


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Label, features and tables of one dataset; N dense features, F sparse features, T tables.

    Raises:
        ConfigError: A name stands twice, a table is missing, or values contradict each other.
    """

    label: Label
    dense: tuple[DenseFeature, ...]
    sparse: tuple[SparseFeature, ...]
    tables: tuple[Table, ...]

    def __post_init__(self) -> None:
        _require_unique("dense feature", [f.name for f in self.dense])
        _require_unique("sparse feature", [f.name for f in self.sparse])
        _require_unique("table", [t.name for t in self.tables])
        if both := sorted({f.name for f in self.dense} & {f.name for f in self.sparse}):
            raise ConfigError(
                f"schema: {both[0]!r} names a dense and a sparse feature; rename one of them, "
                f"e.g. name = '{{column}}_id'"
            )
        tables = {t.name for t in self.tables}
        for feature in self.sparse:
            _check_sparse(feature, tables)
        for table in self.tables:
            _check_table(table)
        _check_label(self.label)
        if not self.sparse and not self.dense:
            raise ConfigError("schema: no feature; declare at least one dense or sparse feature")

    def table_of(self, feature: SparseFeature) -> Table:
        """The table that holds a feature's rows."""
        return next(t for t in self.tables if t.name == feature.table)


def _require_unique(what: str, names: list[str]) -> None:
    for name in names:
        if not name:
            raise ConfigError(f"schema: a {what} has an empty name")
        if names.count(name) > 1:
            raise ConfigError(f"schema: {what} {name!r} stands {names.count(name)} times; rename")


def _check_sparse(feature: SparseFeature, tables: set[str]) -> None:
    where = f"schema: sparse feature {feature.name!r}"
    if feature.table not in tables:
        raise ConfigError(f"{where}: table {feature.table!r} is not one of {sorted(tables)}")
    is_quantile = feature.key == "quantile"
    if feature.num_quantiles < 2 if is_quantile else feature.num_quantiles != 0:
        raise ConfigError(
            f"{where}: key {feature.key!r} with num_quantiles {feature.num_quantiles}; "
            "'quantile' takes 2 or more, every other key takes 0"
        )
    if feature.bag and feature.key == "quantile":
        raise ConfigError(f"{where}: a bag cannot be bucketised; use key string, hex or int")
    is_time = feature.key in CALENDAR_KEYS
    if is_time != bool(feature.time_format) or (is_time and feature.bag):
        raise ConfigError(
            f"{where}: key {feature.key!r} with time_format {feature.time_format!r} and bag "
            f"{str(feature.bag).lower()}; hour_of_day and day_of_week take 'seconds', 'iso' or a "
            "pattern such as '%y%m%d%H' and no bag, the other keys no time_format"
        )
    if feature.weight_column and not feature.bag:
        raise ConfigError(f"{where}: weight_column needs bag = true")


def _check_table(table: Table) -> None:
    where = f"schema: table {table.name!r}"
    if table.min_count < 1:
        raise ConfigError(f"{where}: min_count {table.min_count}; 1 or more is allowed")
    if table.max_rows < 0 or 0 < table.max_rows <= FIRST_ID:
        raise ConfigError(f"{where}: max_rows {table.max_rows}; 0 (no limit) or 3 and more")
    if table.encoding in ("reference", "identity") and table.min_count != 1:
        raise ConfigError(
            f"{where}: min_count {table.min_count} with encoding {table.encoding!r}, which keeps "
            "every value; set min_count = 1"
        )
    if table.encoding == "hash" and table.max_rows == 0:
        raise ConfigError(f"{where}: encoding 'hash' needs max_rows, its number of rows")


def _check_label(label: Label) -> None:
    where = f"schema: label {label.column!r}"
    if not label.positive or not label.negative:
        raise ConfigError(f"{where}: positive and negative each need at least one value")
    if both := sorted(set(label.positive) & set(label.negative)):
        raise ConfigError(f"{where}: {both[0]!r} is both positive and negative")
