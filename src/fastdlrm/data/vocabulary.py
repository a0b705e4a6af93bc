"""Vocabularies: the values of a table's features that are frequent enough in train.

On disk as `fastdlrm.contracts.encoding` says. All features of a table are counted together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import TableEncoding
from fastdlrm.contracts.schema import CALENDAR_KEYS, FIRST_ID, Key, Schema, Table
from fastdlrm.data.counts import TEXT_RUN, read_run, read_texts
from fastdlrm.data.features import hashed_texts
from fastdlrm.data.keys import Keys
from fastdlrm.data.keytable import KeyCounter
from fastdlrm.data.sql import select
from fastdlrm.errors import ConfigError, DataError

_FIELDS = pa.schema([("key", pa.uint64()), ("value", pa.string()), ("count", pa.uint64())])
_SORT_BYTES = 56
"""Memory that sorting takes for a value, its text aside."""
_WRITE_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Values in the order of their ids.

    Attributes:
        keys: Shape (n,).
        counts: Occurrences in train (encoding "reference": in all rows), shape (n,).
        texts: The values of key "string"; None for the other keys, whose keys say it all.
        num_counted: Occurrences of all values, those left out included.
    """

    keys: Keys
    counts: NDArray[np.uint64]
    texts: pa.Array | None
    num_counted: int


def check_tables(schema: Schema) -> None:
    """Refuse features that cannot share a table.

    Raises:
        ConfigError: Their keys differ, they are bucketised, each by edges of its own, or the
            table's encoding is not for them.
    """
    for table in schema.tables:
        features = [f for f in schema.sparse if f.table == table.name]
        keys = sorted({f.key for f in features})
        if len(keys) > 1:
            raise ConfigError(
                f"table {table.name!r}: its features have the keys {keys}; give them one key, or "
                "tables of their own"
            )
        if keys == ["quantile"] and len(features) > 1:
            raise ConfigError(
                f"table {table.name!r}: {len(features)} features of key 'quantile' share it, but "
                "their buckets differ; give each a table of its own"
            )
        if table.encoding == "reference" and (keys != ["hex"] or len(features) > 1):
            raise ConfigError(
                f"table {table.name!r}: encoding 'reference' with keys {keys} of {len(features)} "
                "features; it is for one feature of key 'hex'"
            )
        if table.encoding == "reference" and features[0].bag:
            raise ConfigError(
                f"table {table.name!r}: encoding 'reference' is not for bags; set bag = false, or "
                "use encoding 'vocabulary'"
            )
        if table.encoding == "identity" and keys != ["int"]:
            raise ConfigError(
                f"table {table.name!r}: encoding 'identity' with keys {keys}; it is for key 'int'"
            )


def merge_vocabulary(
    table: Table,
    key: Key,
    runs: Sequence[Path],
    *,
    connection: duckdb.DuckDBPyConnection,
    memory_bytes: int,
) -> Vocabulary:
    """Sum the counts of all runs and keep the frequent values.

    Args:
        table: Encoding "vocabulary".
        key: Of the table's features.
        runs: As `fastdlrm.data.counts` writes them; their order does not matter.
        connection: Groups texts, spilling to disk.
        memory_bytes: Most memory to take, that of the connection aside.

    Raises:
        DataError: The vocabulary does not fit the memory, or two texts have the same key.
    """
    candidates = _Candidates(table, memory_bytes)
    if key == "string":
        num_counted = _merge_texts(runs, candidates, connection)
    else:
        num_counted = _merge_keys(runs, candidates, memory_bytes // 2)
    return candidates.vocabulary(num_counted)


def vocabulary_path(table: str) -> str:
    """Where a table's vocabulary lies in an artifact."""
    return f"vocab/{quote(table, safe=' ')}.arrow"


def write_vocabulary(
    folder: Path, table: Table, vocabulary: Vocabulary, key: Key, edges: Sequence[float]
) -> TableEncoding:
    """Write a vocabulary to an artifact.

    Args:
        folder: The artifact.
        table: Whose vocabulary it is.
        vocabulary: What to write.
        key: Of the table's features.
        edges: Inner bucket edges, for key "quantile".
    """
    first_id = 0 if table.encoding == "reference" else FIRST_ID
    path = folder / vocabulary_path(table.name)
    path.parent.mkdir(exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _FIELDS) as writer:
        for start in range(0, len(vocabulary.keys), _WRITE_ROWS):
            window = slice(start, start + _WRITE_ROWS)
            keys = vocabulary.keys[window]
            known = vocabulary.texts
            texts = _texts(keys, key, edges) if known is None else known[window].cast(pa.string())
            batch = pa.record_batch([keys, texts, vocabulary.counts[window]], schema=_FIELDS)
            writer.write_batch(batch)
    return TableEncoding(
        num_embeddings=first_id + len(vocabulary.keys),
        vocabulary=vocabulary_path(table.name),
        coverage=int(vocabulary.counts.sum()) / max(1, vocabulary.num_counted),
        first_id=first_id,
    )


def read_keys(folder: Path, encoding: TableEncoding) -> Keys:
    """The keys of a vocabulary, in the order of their ids.

    Raises:
        DataError: The file is missing, damaged, or not as long as the table.
    """
    return _read(folder, encoding, "key").to_numpy().copy()


def read_values(folder: Path, encoding: TableEncoding, places: NDArray[np.int64]) -> list[str]:
    """The raw values at some places of a vocabulary; ids begin at the table's first_id.

    Raises:
        DataError: As `read_keys`.
    """
    values = _read(folder, encoding, "value")
    return [values[place].as_py() for place in places.tolist()]


def find_value(folder: Path, encoding: TableEncoding, value: str) -> int | None:
    """The place of a raw value in a vocabulary; None where it is not in it.

    Raises:
        DataError: As `read_keys`.
    """
    place = int(pc.index(_read(folder, encoding, "value"), value).as_py())
    return None if place < 0 else place


def read_counts(folder: Path, encoding: TableEncoding) -> NDArray[np.uint64]:
    """How often each value of a vocabulary occurred, in the order of their ids.

    Raises:
        DataError: As `read_keys`.
    """
    counts: NDArray[np.uint64] = _read(folder, encoding, "count").to_numpy()
    return counts


def _read(folder: Path, encoding: TableEncoding, column: str) -> pa.ChunkedArray:
    """A column of a vocabulary, memory-mapped."""
    path = folder / encoding.vocabulary
    options = pa.ipc.IpcReadOptions(included_fields=[_FIELDS.get_field_index(column)])
    try:
        source = pa.memory_map(str(path))
        values = pa.ipc.open_file(source, options=options).read_all().column(0)
    except (OSError, pa.ArrowInvalid) as problem:
        raise DataError(f"{path}: no vocabulary: {problem}; make {folder} again") from problem
    expected = encoding.num_embeddings - encoding.first_id
    if len(values) != expected:
        raise DataError(
            f"{path}: {len(values)} values, the manifest says {expected}; make {folder} again"
        )
    return values


class _Candidates:
    """Values that are frequent enough, of which a table keeps the most frequent."""

    def __init__(self, table: Table, memory_bytes: int) -> None:
        self.table = table
        self._memory_bytes = memory_bytes
        self._keys: list[Keys] = [np.empty(0, dtype=np.uint64)]
        self._counts: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        self._texts: list[pa.Array] = []
        self._num_bytes = 0

    def add(self, keys: Keys, counts: NDArray[np.uint64], texts: pa.Array | None = None) -> None:
        """Take values that were not there before, with their texts or always without."""
        self._keys.append(keys)
        self._counts.append(counts)
        self._num_bytes += len(keys) * _SORT_BYTES
        if texts is not None:
            self._texts.append(texts.cast(pa.large_string()))
            self._num_bytes += texts.nbytes
        if self._num_bytes > self._memory_bytes:
            self._rank()
            # Ranking again and again is affordable only if it makes room.
            if self._num_bytes > self._memory_bytes // 8 * 7:
                raise self._too_many()

    def vocabulary(self, num_counted: int) -> Vocabulary:
        """What is kept, in the order of ids; `num_counted` as in Vocabulary."""
        self._rank()
        texts = self._texts[0] if self._texts else None
        if texts is not None:
            _require_distinct(self.table, self._keys[0], texts)
        return Vocabulary(self._keys[0], self._counts[0], texts, num_counted)

    def _rank(self) -> None:
        """Most frequent first, ties by key, and no more than the table holds."""
        keys, counts = np.concatenate(self._keys), np.concatenate(self._counts)
        order = np.lexsort((keys, ~counts))
        if self.table.max_rows:
            order = order[: self.table.max_rows - FIRST_ID]
        self._keys, self._counts = [keys[order]], [counts[order]]
        self._num_bytes = len(order) * _SORT_BYTES
        if self._texts:
            self._texts = [pa.concat_arrays(self._texts).take(pa.array(order))]
            self._num_bytes += self._texts[0].nbytes

    def _too_many(self) -> DataError:
        return DataError(
            f"table {self.table.name!r}: a vocabulary of {len(self._keys[0])} values or more needs "
            f"{self._num_bytes >> 20} MiB, {self._memory_bytes >> 20} MiB are left for it; raise "
            "--memory or the table's min_count, set max_rows, or use encoding 'hash'"
        )


def _merge_keys(runs: Sequence[Path], candidates: _Candidates, memory_bytes: int) -> int:
    """Sum by key, in several passes over the runs where memory asks for them, each over its part.

    Returns:
        Number of all values.
    """
    counter, num_counted = KeyCounter(memory_bytes), 0
    while not counter.is_done:
        for run in runs:
            for keys, counts in read_run(run, *counter.span):
                counter.add(keys, counts)
        keys, counts = counter.finish_pass()
        num_counted += int(counts.sum())
        is_frequent = counts >= candidates.table.min_count
        candidates.add(keys[is_frequent], counts[is_frequent])
    return num_counted


def _merge_texts(
    runs: Sequence[Path], candidates: _Candidates, connection: duckdb.DuckDBPyConnection
) -> int:
    """Sum by text, on disk where memory asks for it, then hash each once.

    Returns:
        Number of all values.
    """
    num_counted = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal num_counted
        for run in runs:
            for batch in read_texts(run):
                num_counted += pc.sum(batch.column(1)).as_py() or 0
                yield batch

    query = (
        'SELECT value, sum("count")::UBIGINT AS num FROM stream GROUP BY value '
        f"HAVING num >= {candidates.table.min_count}"
    )
    for batch in select(connection, TEXT_RUN, batches(), query):
        found, counts = batch.columns
        candidates.add(hashed_texts(found), counts.to_numpy(), found)
    return num_counted


def _require_distinct(table: Table, keys: Keys, texts: pa.Array) -> None:
    order = np.argsort(keys)
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(same):
        pair = sorted(texts[int(order[same[0] + i])].as_py() for i in (0, 1))
        raise DataError(
            f"table {table.name!r}: the values {pair[0]!r} and {pair[1]!r} have the same 64-bit "
            "key; change one of them in the input, or list it in data.source.missing"
        )


def _texts(keys: Keys, key: Key, edges: Sequence[float]) -> pa.Array:
    """The values that keys stand for, readable."""
    if key == "int" or key in CALENDAR_KEYS:
        return pa.array(keys.view(np.int64)).cast(pa.string())
    if key == "quantile":
        bounds = [-np.inf, *edges, np.inf]
        return pa.array([f"[{float(bounds[i])}, {float(bounds[i + 1])})" for i in keys.tolist()])
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    octets = keys.byteswap().view(np.uint8)
    text = digits[np.stack([octets >> 4, octets & 15], axis=1).reshape(-1)]
    offsets = np.arange(0, 16 * len(keys) + 1, 16, dtype=np.int32)
    padded = pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(text))
    shortest = pc.utf8_ltrim(padded, "0")
    return pc.if_else(pc.equal(shortest, ""), "0", shortest)
