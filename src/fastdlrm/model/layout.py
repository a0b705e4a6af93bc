"""What lies in memory for the tables of a dataset."""

from collections.abc import Mapping
from typing import NamedTuple

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import ConfigError
from fastdlrm.model.composition import Composition, hashed, plain, quotient_remainder
from fastdlrm.model.compressed import CompressedTables, Compression
from fastdlrm.model.compression_config import (
    CompressionConfig,
    HashCompression,
    NoCompression,
    QuotientRemainder,
)
from fastdlrm.model.config import ModelConfig, Pooling
from fastdlrm.model.embedding import Draw
from fastdlrm.model.lookup import Tables
from fastdlrm.model.pooling import by_feature


class Layout(NamedTuple):
    """Tables in memory.

    Attributes:
        num_embeddings: Rows by table, in order.
        dims: Columns d by table.
        embedding_dim: D, the most columns.
        feature_tables: The table of each feature that is looked up: of each sparse feature, or of
            each part of one whose table is compressed.
        draws: How tables that stand for others begin.
        pooling: How the rows of a bag become one vector, by table.
        compression: Between the model's features and these; None where there is nothing between.
    """

    num_embeddings: dict[str, int]
    dims: dict[str, int]
    embedding_dim: int
    feature_tables: list[str]
    draws: Mapping[str, Draw]
    pooling: dict[str, Pooling]
    compression: Compression | None

    @property
    def narrow_dims(self) -> dict[str, int]:
        """Columns of the tables that have fewer than D."""
        return {table: dim for table, dim in self.dims.items() if dim < self.embedding_dim}

    @property
    def num_numbers(self) -> int:
        """Of all rows."""
        return sum(rows * self.dims[table] for table, rows in self.num_embeddings.items())

    def wrapped(self, tables: Tables) -> Tables:
        """Tables in memory as the model calls them."""
        if self.compression is None:
            return tables
        return CompressedTables(tables, self.compression)


def layout_of(config: ModelConfig, schema: Schema, encoding: Encoding) -> Layout:
    """Lay out the tables.

    Args:
        config: Says which are compressed.
        schema: The features.
        encoding: Sizes of their tables.

    Raises:
        ConfigError: A table is to be compressed to as many numbers or more, its name is taken, it
            is to be narrow as well, or the embedding dim cannot be cut.
    """
    sizes = table_sizes(schema, encoding)
    if config.mixed_dims is not None and sizes and not config.table_dims:
        raise ConfigError(
            "model.mixed_dims is set without the columns it comes to; set model.table_dims, or "
            "work them out by fastdlrm.train.dims.with_table_dims"
        )
    tables = {name: composition_of(config.compression, name, n) for name, n in sizes.items()}
    D = config.embedding_dim
    rows: dict[str, int] = {}
    dims: dict[str, int] = {}
    draws: dict[str, Draw] = {}
    rules = {name: config.table_pooling.get(name, config.pooling) for name in sizes}
    pooling: dict[str, Pooling] = {}
    for name, table in tables.items():
        if taken := sorted((rows.keys() | sizes.keys() - {name}) & table.num_embeddings.keys()):
            raise ConfigError(
                f"model.compression: table {name!r} would lie in {taken[0]!r}, which is another "
                "table's name; rename one of them in [data]"
            )
        if D % table.num_pieces:
            raise ConfigError(
                f"model.compression: table {name!r} is 'concat' of {table.num_pieces} pieces with "
                f"embedding_dim {D}; it must be a multiple, or choose another operation"
            )
        rows |= table.num_embeddings
        dim = config.table_dims.get(name, D // table.num_pieces)
        dims |= dict.fromkeys(table.num_embeddings, dim)
        draws |= table.draws
        pooling |= dict.fromkeys(table.num_embeddings, rules[name])
    used = [feature.table for feature in schema.sparse]
    features = [tables[name] for name in used]
    is_plain = rows == sizes or not features
    if squeezed := sorted(config.table_dims.keys() - rows.keys()):
        raise ConfigError(
            f"model.table_dims.{squeezed[0]}: that table is compressed by model.compression; set "
            "one of the two for it"
        )
    return Layout(
        rows,
        dims,
        D,
        [part for feature in features for part in feature.parts],
        draws,
        pooling,
        None if is_plain else Compression(features, by_feature(rules, used)),
    )


def table_sizes(schema: Schema, encoding: Encoding) -> dict[str, int]:
    """Rows by table as the dataset has them, an id each, in the model's order."""
    return {table.name: encoding.tables[table.name].num_embeddings for table in schema.tables}


def composition_of(config: CompressionConfig, table: str, num_ids: int) -> Composition:
    """How a table is held.

    Args:
        config: Says which tables are compressed.
        table: Its name.
        num_ids: Its rows as the dataset has them.

    Raises:
        ConfigError: It is named in the config, and would not become smaller.
    """
    named = config.tables.get(table)
    is_small = named is None and num_ids <= config.threshold_rows
    kind = NoCompression() if is_small else named or config.default
    if isinstance(kind, HashCompression):
        made = hashed(table, num_ids, kind.num_rows, kind.num_hashes)
    elif isinstance(kind, QuotientRemainder):
        made = quotient_remainder(table, num_ids, kind.num_collisions, kind.operation)
    else:
        return plain(table, num_ids)
    num_rows = sum(made.num_embeddings.values())
    if num_rows < num_ids * made.num_pieces:
        return made
    if named is None:
        return plain(table, num_ids)
    raise ConfigError(
        f"model.compression.tables.{table}: {num_rows} rows for a table of {num_ids}; lower "
        "num_rows, choose another num_collisions, or set kind = 'none'"
    )
