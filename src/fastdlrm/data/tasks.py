"""The tasks of `prepare`: each reads files of the work folder and writes its own.

Every task is a function object that can be pickled; what is costly to load is loaded once by the
process that first needs it. Files appear complete or not at all, and may be written twice: by a
task that a record does not speak for, with the same content.
"""

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from fastdlrm.contracts.encoding import Encoding, TableEncoding
from fastdlrm.contracts.manifest import InputFile, entry_of
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature, Table
from fastdlrm.data.config import SourceConfig, SplitConfig
from fastdlrm.data.counts import TrainSpan, write_run
from fastdlrm.data.encode import Encoder, encoded_schema
from fastdlrm.data.first_seen import first_seen_vocabulary
from fastdlrm.data.fit import fit_edges, fit_statistics, largest_value, require_values
from fastdlrm.data.shuffle import PartPlan, SpoolWriter, load_part
from fastdlrm.data.source import BadRow, stage_file
from fastdlrm.data.split import SplitCounts, Splits, count_splits, resolve_splits
from fastdlrm.data.sql import connect
from fastdlrm.data.staged import TIME, StagedRows
from fastdlrm.data.steps import Outcome
from fastdlrm.data.vocabulary import merge_vocabulary, write_vocabulary
from fastdlrm.data.workers import Report
from fastdlrm.data.write import seal, write_part

DATASET = "dataset"
"""Folder, under the work folder, that becomes the dataset."""
SPILL = "spill"
"""Folder, under the work folder, of what DuckDB has no memory for."""


def staged_path(number: int) -> str:
    """Where an input is staged, under the work folder."""
    return f"staged/{number:05d}.parquet"


def run_path(span: int, table: int) -> str:
    """Where the counts of a span and table lie, under the work folder."""
    return f"counts/{span:05d}-{table:05d}.run"


def spool_path(span: int) -> str:
    """Where the encoded rows of a span lie, under the work folder."""
    return f"encoded/{span:05d}.spool"


class StagedInput(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a staged file without opening it."""

    input: InputFile
    bad_rows: tuple[BadRow, ...]
    """The first of those that were left out."""
    time: str
    """numbers or date-times; empty without TIME."""
    num_ids: dict[str, int]
    """Ids by bag column, an empty bag counting as one."""


class FoundSplits(msgspec.Struct, frozen=True, kw_only=True):
    """The splits, and the rows and positives of each by span."""

    splits: Splits
    rows: list[list[int]]
    positives: list[list[int]]

    @property
    def counts(self) -> SplitCounts:
        """As arrays, shape (spans, 3)."""
        return SplitCounts(np.array(self.rows), np.array(self.positives))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInput:
    """Stages input `number`."""

    work: Path
    inputs: tuple[Path, ...]
    source: SourceConfig
    schema: Schema
    time_column: str
    remedy: str | None
    """What the message about a bad row says to do; None leaves bad rows out."""

    def __call__(self, number: int, report: Report) -> Outcome:
        """Stage a file."""
        name = staged_path(number)
        (self.work / name).parent.mkdir(exist_ok=True)
        staged = stage_file(
            self.inputs[number],
            self.source,
            self.schema,
            self.work / name,
            remedy=self.remedy,
            time_column=self.time_column,
            report=report,
        )
        rows = StagedRows([staged.path])
        time = ""
        if TIME in rows.schema.names:
            is_number = pa.types.is_floating(rows.schema.field(TIME).type)
            time = "numbers" if is_number else "date-times"
        result = StagedInput(
            input=staged.input, bad_rows=tuple(staged.bad_rows), time=time, num_ids=rows.num_ids
        )
        return Outcome(result, {name: entry_of(self.work / name)})


class OnceLoaded:
    """What tasks of one process share: loaded by the first that asks, not pickled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type["OnceLoaded"], tuple[()]]:
        return OnceLoaded, ()

    def clear(self) -> None:
        """Let go of it all."""
        with self._lock:
            self._loaded.clear()

    def staged(self, work: Path, num_inputs: int) -> StagedRows:
        """The staged rows."""
        with self._lock:
            if "staged" not in self._loaded:
                paths = [work / staged_path(number) for number in range(num_inputs)]
                self._loaded["staged"] = StagedRows(paths)
            rows: StagedRows = self._loaded["staged"]
            return rows

    def encoder(self, folder: Path, schema: Schema, encoding: Encoding) -> Encoder:
        """The encoder."""
        with self._lock:
            if "encoder" not in self._loaded:
                self._loaded["encoder"] = Encoder.load(folder, schema, encoding)
            encoder: Encoder = self._loaded["encoder"]
            return encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedSpans:
    """Where tasks find staged rows.

    Attributes:
        work: The work folder.
        num_inputs: Number of staged files.
        spans: Chunks of each span.
        shared: Keeps what is loaded.
    """

    work: Path
    num_inputs: int
    spans: tuple[range, ...]
    shared: OnceLoaded

    @property
    def rows(self) -> StagedRows:
        """All staged rows."""
        return self.shared.staged(self.work, self.num_inputs)

    @contextmanager
    def connection(self, memory_bytes: int) -> Iterator[duckdb.DuckDBPyConnection]:
        """A database that spills to a folder of its own."""
        (self.work / SPILL).mkdir(exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=self.work / SPILL) as folder,
            connect(memory_bytes, Path(folder), 1) as connection,
        ):
            yield connection


@dataclass(frozen=True, slots=True, kw_only=True)
class FindSplits:
    """Resolves the splits and counts their rows: the only task of its step."""

    staged: StagedSpans
    schema: Schema
    split: SplitConfig
    seed: int
    memory_bytes: int

    def __call__(self, number: int, report: Report) -> Outcome:
        """Find the splits."""
        rows = self.staged.rows
        with self.staged.connection(self.memory_bytes) as connection:
            splits = resolve_splits(rows, self.split, self.seed, connection)
        counts = count_splits(rows, splits, self.split)
        require_values(rows, splits, self.schema)
        by_span = [
            [counted[span.start : span.stop].sum(0).tolist() for span in self.staged.spans]
            for counted in (counts.rows, counts.positives)
        ]
        return Outcome(FoundSplits(splits=splits, rows=by_span[0], positives=by_span[1]), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class FitFeature:
    """Fits the statistics, or the bucket edges, of feature `number`."""

    staged: StagedSpans
    splits: Splits
    features: tuple[DenseFeature | SparseFeature, ...]
    memory_bytes: int

    def __call__(self, number: int, report: Report) -> Outcome:
        """Fit a feature."""
        feature, rows = self.features[number], self.staged.rows
        if isinstance(feature, DenseFeature):
            return Outcome(fit_statistics(rows, self.splits, feature), {})
        with self.staged.connection(self.memory_bytes) as connection:
            return Outcome(fit_edges(rows, self.splits, feature, connection), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class CountSpan:
    """Counts the values of every table in the train rows of span `number`."""

    staged: StagedSpans
    splits: Splits
    tables: tuple[tuple[SparseFeature, ...], ...]
    edges: Mapping[str, Sequence[float]]
    memory_bytes: int

    def __call__(self, number: int, report: Report) -> Outcome:
        """Count a span."""
        rows, files = self.staged.rows, {}
        chunks = [rows.chunks[i] for i in self.staged.spans[number]]
        train = TrainSpan(rows, self.splits, chunks)
        with self.staged.connection(self.memory_bytes // 2) as connection:
            for table, features in enumerate(self.tables):
                name = run_path(number, table)
                with whole_file(self.staged.work / name) as out:
                    write_run(
                        out,
                        features,
                        train.values,
                        edges=self.edges,
                        connection=connection,
                        memory_bytes=self.memory_bytes,
                    )
                files[name] = entry_of(self.staged.work / name)
                report(0)
        return Outcome(None, files)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTable:
    """Sums the counts of table `number` over all spans, and writes its vocabulary."""

    staged: StagedSpans
    tables: tuple[tuple[Table, tuple[SparseFeature, ...]], ...]
    edges: Mapping[str, Sequence[float]]
    memory_bytes: int

    def __call__(self, number: int, report: Report) -> Outcome:
        """Merge a table's counts."""
        table, features = self.tables[number]
        work = self.staged.work
        runs = [work / run_path(span, number) for span in range(len(self.staged.spans))]
        # Texts are grouped by the database, and ordered beside it.
        share = 9 if features[0].key == "string" else 12
        with self.staged.connection(self.memory_bytes // 4) as connection:
            vocabulary = merge_vocabulary(
                table,
                features[0].key,
                runs,
                connection=connection,
                memory_bytes=self.memory_bytes // 16 * share,
            )
        folder, edges = work / DATASET, self.edges.get(features[0].name, ())
        found: TableEncoding = write_vocabulary(folder, table, vocabulary, features[0].key, edges)
        name = f"{DATASET}/{found.vocabulary}"
        return Outcome(found, {name: seal(work / name)})


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberTable:
    """Sizes table `number`, of encoding "reference" or "identity", by all rows."""

    staged: StagedSpans
    tables: tuple[tuple[Table, tuple[SparseFeature, ...]], ...]
    memory_bytes: int

    def __call__(self, number: int, report: Report) -> Outcome:
        """Number a table's values."""
        table, features = self.tables[number]
        rows, work = self.staged.rows, self.staged.work
        if table.encoding == "identity":
            num_rows = table.max_rows or largest_value(rows, features) + 1
            return Outcome(
                TableEncoding(num_embeddings=num_rows, vocabulary="", coverage=1.0, first_id=0), {}
            )
        vocabulary = first_seen_vocabulary(table, features[0], rows, self.memory_bytes)
        found = write_vocabulary(work / DATASET, table, vocabulary, features[0].key, ())
        name = f"{DATASET}/{found.vocabulary}"
        return Outcome(found, {name: seal(work / name)})


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSpan:
    """Encodes the rows of span `number` and sorts them by part."""

    staged: StagedSpans
    splits: Splits
    schema: Schema
    encoding: Encoding
    plan: PartPlan
    ranks: tuple[tuple[int, ...], ...]
    """By span, the rows of each split in front of it."""
    buffer_bytes: int

    def __call__(self, number: int, report: Report) -> Outcome:
        """Encode a span."""
        work, rows = self.staged.work, self.staged.rows
        encoder = self.staged.shared.encoder(work / DATASET, self.schema, self.encoding)
        rank = np.array(self.ranks[number])
        name, num_parts = spool_path(number), len(self.plan)
        with (
            whole_file(work / name) as out,
            SpoolWriter(out, num_parts, self.buffer_bytes) as spool,
        ):
            for i in self.staged.spans[number]:
                for block in rows.read(rows.chunks[i], rows.schema.names):
                    split = self.splits.assign(block)
                    parts = self.plan.parts_of(split, block.start, rank)
                    spool.append(encoder.encode(block.rows), parts)
                    rank += np.bincount(split, minlength=len(rank))
                report(0)
        return Outcome(None, {name: entry_of(work / name)})


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePart:
    """Permutes the rows of part `number` and writes it; a part without rows has no file."""

    work: Path
    num_spans: int
    schema: Schema
    encoding: Encoding
    plan: PartPlan

    def __call__(self, number: int, report: Report) -> Outcome:
        """Write a part."""
        spools = [self.work / spool_path(span) for span in range(self.num_spans)]
        columns = encoded_schema(self.schema, self.encoding)
        rows = load_part(spools, columns, self.plan, number)
        if rows is None:
            return Outcome(None, {})
        name = f"{DATASET}/{self.plan.path(number)}"
        return Outcome(None, {name: write_part(self.work / name, rows)})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to, renamed to it when all went well, else removed."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
