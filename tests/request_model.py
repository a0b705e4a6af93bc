"""A small model's encoding with a feature of every kind, and its requests beside raw rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastdlrm.batch import Batch
from fastdlrm.contracts.encoding import HASH_VERSION, DenseStatistics, Encoding, TableEncoding
from fastdlrm.contracts.hashing import text_key
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.data.convert import Converter
from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.data.vocabulary import Vocabulary, write_vocabulary
from fastdlrm.errors import DataError
from fastdlrm.export.vocabulary_index import INDEX, VocabularyIndex, write_index
from tests import staging

HEX_KEYS = [0, 1, 0xAB, 0xDEADBEEF, 2**64 - 1]
INT_KEYS = [0, 1, 7, 2**64 - 3, 2**63]
"""As int64: 0, 1, 7, -3 and the least."""
WORDS = ["tea", "a b", "naïve", "日本", "", "NA"]
EDGES = (0.0, 1.5, 100.0)

DENSE = (
    staging.dense("price", "none", 0.25),
    staging.dense("count", "log1p", 3.0),
    staging.dense("clicks", "log1p"),
    staging.dense("age", "standardize", 40.0),
)


def _sparse(name: str, key: str, table: str, **settings: Any) -> SparseFeature:
    settings = {"column": name, "num_quantiles": 4 if key == "quantile" else 0, **settings}
    return SparseFeature(name=name, key=key, table=table, **settings)  # type: ignore[arg-type]


SPARSE = (
    _sparse("C1", "hex", "C1"),
    _sparse("C2", "hex", "C2"),
    _sparse("C3", "hex", "C3"),
    _sparse("C4", "hex", "C4"),
    _sparse("item", "int", "item"),
    _sparse("place", "int", "place"),
    _sparse("user", "int", "user"),
    _sparse("word", "string", "word"),
    _sparse("query", "string", "query"),
    _sparse("bucket", "quantile", "bucket", column="price"),
    _sparse("level", "quantile", "level"),
    _sparse("hour", "hour_of_day", "hour", time_format="%y%m%d%H", column="when"),
    _sparse("weekday", "day_of_week", "weekday", time_format="seconds", column="second"),
    _sparse("seen", "int", "item", bag=True, weight_column="dwell"),
    _sparse("tags", "string", "word", bag=True, separator="|"),
    _sparse("paths", "hex", "C1", bag=True, separator=" ", weight_column="strengths"),
)
TABLES = (
    staging.table("C1"),
    staging.table("C2", "hash", max_rows=9),
    staging.table("C3", "reference", max_rows=100),
    staging.table("C4", "reference"),
    staging.table("item"),
    staging.table("place", "identity", max_rows=8),
    staging.table("user", "hash", max_rows=300),
    staging.table("word"),
    staging.table("query", "hash", max_rows=5),
    staging.table("bucket"),
    staging.table("level", "hash", max_rows=4),
    staging.table("hour"),
    staging.table("weekday", "hash", max_rows=7),
)
KEYS: dict[str, list[int]] = {
    "C1": HEX_KEYS,
    "C3": [key % 100 for key in (0, 1, 0xAB, 0xDEADBEEF)],
    "C4": [0, 1, 0xAB],
    "item": INT_KEYS,
    "word": [text_key(word) for word in WORDS],
    "bucket": [1, 0, 3],
    "hour": [0, 10, 23],
}
ENCODING_KEYS = {"item": "int", "word": "string", "bucket": "quantile", "hour": "hour_of_day"}


class RequestModel:
    """Some of the features above, fitted, and raw rows encoded as `prepare` does."""

    def __init__(
        self,
        folder: Path,
        features: tuple[DenseFeature | SparseFeature, ...] = (*DENSE, *SPARSE),
        missing: tuple[str, ...] = ("",),
    ) -> None:
        used = {f.table for f in features if isinstance(f, SparseFeature)}
        self.missing = missing
        self.schema = Schema(
            label=staging.LABEL,
            dense=tuple(f for f in features if isinstance(f, DenseFeature)),
            sparse=tuple(f for f in features if isinstance(f, SparseFeature)),
            tables=tuple(t for t in TABLES if t.name in used),
        )
        self.encoding = Encoding(
            hash_version=HASH_VERSION,
            dense={"age": DenseStatistics(mean=38.7, std=13.1)},
            quantiles={"bucket": EDGES, "level": EDGES},
            tables={t.name: _fitted(folder, t.name) for t in self.schema.tables},
        )
        write_index(folder / INDEX, folder, self.encoding)
        self.index = VocabularyIndex.open(folder / INDEX, self.encoding)
        self._encoder = Encoder(self.schema, self.encoding, self.index.tables())
        self._converter = Converter("log", self.schema, missing, labelled=False, time_column="")

    def by_prepare(self, raw: pa.RecordBatch) -> Batch | tuple[int, str]:
        """A batch of raw rows, or the first wrong row and the words for it."""
        staged, flaws = self._converter.convert(raw)
        if flaws:
            return min(flaws.items())
        try:
            encoded = self._encoder.encode(staged)
        except DataError as problem:
            return -1, str(problem)
        return Rows([encoded], self.schema).batch(slice(0, raw.num_rows))


def _fitted(folder: Path, name: str) -> TableEncoding:
    table = next(t for t in TABLES if t.name == name)
    if table.encoding in ("hash", "identity"):
        first_id = 2 if table.encoding == "hash" else 0
        return TableEncoding(
            num_embeddings=table.max_rows, vocabulary="", coverage=1.0, first_id=first_id
        )
    keys = np.array(KEYS[name], dtype=np.uint64)
    texts = pa.array(WORDS) if name == "word" else None
    vocabulary = Vocabulary(keys, np.ones(len(keys), dtype=np.uint64), texts, len(keys))
    key: Any = ENCODING_KEYS.get(name, "hex")
    return write_vocabulary(folder, table, vocabulary, key, EDGES if key == "quantile" else ())


def text_inputs(raw: pa.RecordBatch) -> dict[str, WireTensor]:
    """Raw rows as a client sends them: text, or values and lengths of lists."""
    inputs = {}
    for name, column in zip(raw.schema.names, raw.columns, strict=True):
        if pa.types.is_list(column.type):
            values = column.flatten()
            lengths = [len(bag) for bag in column.to_pylist()]
            inputs[name] = (
                WireTensor.from_texts(values.to_pylist())
                if pa.types.is_string(values.type)
                else WireTensor.from_array(values.to_numpy(zero_copy_only=False))
            )
            inputs[f"{name}.lengths"] = WireTensor.from_array(np.array(lengths, dtype=np.int32))
        elif pa.types.is_string(column.type):
            inputs[name] = WireTensor.from_texts(column.to_pylist())
        else:
            inputs[name] = WireTensor.from_array(column.to_numpy(zero_copy_only=False))
    return inputs


def assert_same(found: Batch, expected: Batch) -> None:
    """Equal in every bit, and in what is there."""
    assert found.num_samples == expected.num_samples
    assert found.sparse.num_features == expected.sparse.num_features
    pairs = [
        (found.dense, expected.dense),
        (found.labels, expected.labels),
        (found.sparse.ids, expected.sparse.ids),
        (found.sparse.lengths, expected.sparse.lengths),
        (found.sparse.weights, expected.sparse.weights),
    ]
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            np.testing.assert_array_equal(
                ours.numpy().view(np.int32), theirs.numpy().view(np.int32)
            )
