"""What `fastdlrm embeddings` finds in the tables of a run."""

import msgspec

NORM_LEVELS = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)
"""Percentiles of the norms that are told."""
LOOKUP_SHARES = (0.5, 0.9, 0.99)
"""Shares of the lookups for which the fewest rows that take them are counted."""


class NamedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a table."""

    row: int
    value: str | None
    """Raw value; None where the table's encoding keeps none."""
    count: int
    """Lookups in train."""
    norm: float
    """Euclidean."""


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A row near another."""

    row: NamedRow
    cosine: float


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """The rows nearest to one by cosine, among the values that train looks up."""

    of: NamedRow
    nearest: tuple[Neighbour, ...]
    """Nearest first."""


class NormsByCount(msgspec.Struct, frozen=True, kw_only=True):
    """Norms of the rows that train looks up about equally often."""

    least: int
    """Lookups, as the next one."""
    most: int
    num_rows: int
    p10: float
    median: float
    p90: float


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in the plane of the first two principal components of all rows that train looks up."""

    rows: tuple[NamedRow, ...]
    """The most frequent values, most frequent first."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    explained: tuple[float, float]
    """Share of the variance along each."""


class TableEmbeddings(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one table."""

    name: str
    features: tuple[str, ...]
    num_rows: int
    embedding_dim: int
    num_lookups: int
    """In one pass over train."""
    num_unseen: int
    """Rows that train never looks up."""
    num_unmoved: int
    """Rows that are, bit for bit, as they were drawn."""
    num_seen_unmoved: int
    """Of those, rows that train looks up."""
    norm_mean: float
    norm_percentiles: tuple[float, ...]
    """For each of NORM_LEVELS."""
    norm_edges: tuple[float, ...]
    """Of the histogram's bins, equally wide, ascending, one more than bins."""
    norm_seen: tuple[int, ...]
    """Rows in each bin that train looks up."""
    norm_unseen: tuple[int, ...]
    """The others."""
    norms_by_count: tuple[NormsByCount, ...]
    """By ascending lookups, each bound twice the one before."""
    rows_for_lookups: tuple[int, ...]
    """For each of LOOKUP_SHARES."""
    neighbours: tuple[Neighbours, ...]
    projection: Projection | None
    """None where train looks up fewer than two values."""


class EmbeddingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a run's model."""

    created_by: str
    """Package version."""
    commit: str
    """Of the source tree; empty where it is not one."""
    run: str
    """Its folder, as it was named."""
    step: int
    """Of its checkpoint."""
    data: str
    """The dataset's folder, as it was named."""
    tables: tuple[TableEmbeddings, ...]
