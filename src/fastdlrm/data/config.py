"""What a raw file looks like and how it becomes a dataset: the [data] section of a preset."""

from typing import Literal

import msgspec

from fastdlrm.contracts.schema import (
    DenseFeature,
    IdEncoding,
    Key,
    Label,
    Schema,
    SparseFeature,
    Table,
    Transform,
)
from fastdlrm.errors import ConfigError


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layout of the raw files. CSV and TSV may be gzipped."""

    format: Literal["csv", "parquet", "int32"]
    """csv covers any delimiter; int32 is rows of one little-endian int32 a column, such as the
    reference's binary files."""
    delimiter: str = ","
    """Between fields of a text file, 1 to 4 characters."""
    quote: str = '"'
    """Quotes a field that holds a delimiter; empty turns quoting off."""
    header: bool = False
    """Whether a text file's first line names its columns."""
    columns: tuple[str, ...] = ()
    """Names of a headerless text or int32 file's columns, in order; empty with a header or
    Parquet."""
    missing: tuple[str, ...] = ("",)
    """Texts that stand for a missing value."""


class DenseGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dense features that share their settings."""

    columns: tuple[str, ...]
    """Raw columns; each becomes one feature of the same name."""
    transform: Transform
    """log1p for heavy-tailed counts, standardize for the rest."""
    fill: float = 0.0
    """Takes the place of a missing value, before the transform."""


class SparseGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sparse features that share their settings."""

    columns: tuple[str, ...]
    """Raw columns; each becomes one feature."""
    name: str = "{column}"
    """Name of the feature; {column} is replaced. Needed where the column is a dense feature too."""
    key: Key = "string"
    """How raw values become 64-bit keys."""
    num_quantiles: int = 0
    """Buckets of key "quantile". More: finer, but fewer rows a bucket."""
    bag: bool = False
    """Whether a value is a list of ids."""
    separator: str = ""
    """Between the ids of a bag in a text column."""
    weight_column: str = ""
    """Raw column with a weight for each id of the bag; one column a group."""
    table: str = ""
    """Table that all columns of the group share; empty gives each feature its own."""
    time_format: str = ""
    """How times are written, for the keys hour_of_day and day_of_week: "seconds" since 1970, "iso"
    for ISO 8601, or a pattern of strptime such as "%y%m%d%H"."""
    encoding: IdEncoding = "vocabulary"
    """How keys become rows."""
    min_count: int = 1
    """Occurrences in train below which a value is out of vocabulary. More: fewer rows to learn,
    and a trained row for unseen values."""
    max_rows: int = 0
    """Most rows a table, the most frequent values kept; the exact number with encoding "hash" or
    "identity"; with "reference" keys are taken modulo it, as by the reference's max-ind-range; 0:
    no limit."""


class Holdout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows kept from train, for validation or test."""

    by: Literal["none", "file", "range", "position", "time", "hash"]
    """file: the last files; range: the last of `num_ranges` ranges of rows; position: the last rows
    in file order; time: the rows with the largest values of `column`; hash: rows drawn by a hash of
    their position."""
    amount: float = 0.0
    """Number of files or ranges, below 1 the last share of the last one, rounded down to rows
    (file, range); else the share of all rows, between 0 and 1."""
    num_ranges: int = 0
    """Ranges into which all rows are cut in file order (range): equally long, but for the first
    ones, which are one row longer where the number of rows asks for it."""
    column: str = ""
    """Raw numeric or date-time column (time)."""

    def __post_init__(self) -> None:
        if self.by == "none":
            allowed = self.amount == 0
        elif self.by in ("file", "range"):
            is_whole = self.amount >= 1 and self.amount == int(self.amount)
            allowed = is_whole or 0 < self.amount < 1
        else:
            allowed = 0 < self.amount < 1
        if not allowed:
            raise ConfigError(
                f"split: amount {self.amount:g} with by = {self.by!r}; none takes 0, file and "
                "range a whole number from 1 or a share of the last one, the others a share "
                "between 0 and 1"
            )
        if self.num_ranges < 2 if self.by == "range" else self.num_ranges != 0:
            raise ConfigError(
                f"split: num_ranges {self.num_ranges} with by = {self.by!r}; range takes 2 or "
                "more, every other kind takes 0"
            )
        if (self.by == "time") != bool(self.column):
            raise ConfigError(f"split: column {self.column!r} with by = {self.by!r}; time needs it")


class SplitConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which rows are train, validation and test. Test is taken first, validation from the rest."""

    validation: Holdout
    test: Holdout


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `prepare` needs besides the files."""

    source: SourceConfig
    label: Label
    dense: tuple[DenseGroup, ...]
    sparse: tuple[SparseGroup, ...]
    split: SplitConfig
    shuffle: bool
    """Whether the train split is written in a random order (seeded by `seed`)."""
    seed: int
    """Of the shuffle and of holdouts by hash."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"data.seed is {self.seed}; 0 .. 2**64 - 1 is allowed")

    def schema(self) -> Schema:
        """The schema that the groups spell out.

        Raises:
            ConfigError: As `Schema`.
        """
        dense = tuple(
            DenseFeature(name=column, column=column, transform=group.transform, fill=group.fill)
            for group in self.dense
            for column in group.columns
        )
        sparse: list[SparseFeature] = []
        tables: dict[str, Table] = {}
        for group in self.sparse:
            for column in group.columns:
                name = group.name.replace("{column}", column)
                feature = SparseFeature(
                    name=name,
                    column=column,
                    table=group.table or name,
                    key=group.key,
                    num_quantiles=group.num_quantiles,
                    bag=group.bag,
                    separator=group.separator,
                    weight_column=group.weight_column,
                    time_format=group.time_format,
                )
                table = Table(
                    name=feature.table,
                    encoding=group.encoding,
                    min_count=group.min_count,
                    max_rows=group.max_rows,
                )
                if tables.setdefault(table.name, table) != table:
                    raise ConfigError(
                        f"data.sparse: table {table.name!r} is declared twice with different "
                        "settings; give both groups the same encoding, min_count and max_rows"
                    )
                sparse.append(feature)
        return Schema(
            label=self.label,
            dense=dense,
            sparse=tuple(sparse),
            tables=tuple(tables.values()),
        )
