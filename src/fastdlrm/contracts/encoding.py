"""What `prepare` fitted on the train rows: all that is needed to encode a raw row again.

A vocabulary is an Arrow IPC file with columns `key` (uint64), `value` (string) and `count`
(uint64), most frequent first, ties by key; row i stands for id i + FIRST_ID.
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
    """Rows, the two reserved ones included."""
    vocabulary: str
    """Path of the vocabulary, relative to the artifact; empty for encoding "hash"."""
    coverage: float
    """Share of train's ids that are in the vocabulary; 1 for encoding "hash"."""


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
