"""What `prepare` fitted: all that is needed to encode a raw row again.

A vocabulary is an Arrow IPC file with columns `key` (uint64), `value` (string) and `count`
(uint64); row i stands for id i + first_id. Encoding "vocabulary" counts train, most frequent first,
ties by key; "reference" counts all rows, in the order of first sight.
"""

import msgspec

HASH_VERSION = 1
"""Version of `fastdlrm.contracts.hashing`; an artifact of another version is refused."""


class DenseStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and standard deviation of a "standardize" feature over train, after fill."""

    mean: float
    std: float


class TableEncoding(msgspec.Struct, frozen=True, kw_only=True):
    """Size and vocabulary of one table."""

    num_embeddings: int
    """Rows, the reserved ones included."""
    vocabulary: str
    """Path of the vocabulary, relative to the artifact; empty where the encoding has none."""
    coverage: float
    """Share of train's ids that are in the vocabulary; 1 where there is none."""
    first_id: int = 2
    """Rows reserved in front: 2 with "vocabulary" and "hash", else 0."""


class Encoding(msgspec.Struct, frozen=True, kw_only=True):
    """Everything fitted, by name."""

    hash_version: int
    dense: dict[str, DenseStatistics]
    """By dense feature, for transform "standardize" only."""
    quantiles: dict[str, tuple[float, ...]]
    """Inner bucket edges, ascending, by sparse feature of key "quantile". Bucket i holds
    edges[i-1] <= x < edges[i]."""
    tables: dict[str, TableEncoding]
    """By table."""
