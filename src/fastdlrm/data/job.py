"""The steps of `prepare`: stage, split, fit, count, merge, number, encode, write.

Each is run when a later one asks for what it found. The keys of its tasks hold all that their
outcome depends on, and neither memory nor the number of workers. Files that no task needs any more
are removed: counts once they are merged, staged files once they are encoded.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from fastdlrm import __version__
from fastdlrm.contracts.encoding import HASH_VERSION, DenseStatistics, Encoding, TableEncoding
from fastdlrm.contracts.manifest import source_commit
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature, Table
from fastdlrm.data.config import DataConfig
from fastdlrm.data.encode import encoded_schema, require_fit
from fastdlrm.data.journal import digest
from fastdlrm.data.shuffle import PART_BYTES, PartPlan
from fastdlrm.data.source import ROW_GROUP_ROWS
from fastdlrm.data.split import time_column
from fastdlrm.data.staged import spans, sparse_column
from fastdlrm.data.steps import Done, Runner, Step
from fastdlrm.data.tasks import (
    CountSpan,
    EncodeSpan,
    FindSplits,
    FitFeature,
    FoundSplits,
    MergeTable,
    NumberTable,
    OnceLoaded,
    StagedInput,
    StagedSpans,
    StageInput,
    WritePart,
    run_path,
)
from fastdlrm.data.workers import Budget
from fastdlrm.errors import DataError

logger = logging.getLogger(__name__)

LEAST_TASK_BYTES = 160 << 20
"""Memory of a task of any step but the last: a block of rows as it is read and encoded, about."""
_MERGE_BYTES = 6
"""Memory that merging takes for a byte of counts that are all of different values, about."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The steps of one `prepare`; each is run when the next asks for it.

    Attributes:
        inputs: Raw files.
        config: The [data] section.
        schema: Spelt out.
        remedy: What the message about a bad row says to do; None leaves bad rows out.
        work: The work folder.
        budget: Memory of a process.
        runner: Runs the steps.
    """

    inputs: tuple[Path, ...]
    config: DataConfig
    schema: Schema
    remedy: str | None
    work: Path
    budget: Budget
    runner: Runner
    shared: OnceLoaded = field(default_factory=OnceLoaded)

    # stage

    @cached_property
    def _stage(self) -> Step[StagedInput]:
        stats = [path.stat() for path in self.inputs]
        num_at_once, _ = self.budget.split(LEAST_TASK_BYTES)
        return Step(
            name="stage",
            result=StagedInput,
            keys=[
                digest(self._stage_key, path.name, stat.st_size, stat.st_mtime_ns)
                for path, stat in zip(self.inputs, stats, strict=True)
            ],
            sizes=[stat.st_size for stat in stats],
            function=StageInput(
                work=self.work,
                inputs=self.inputs,
                source=self.config.source,
                schema=self.schema,
                time_column=time_column(self.config.split),
                remedy=self.remedy,
            ),
            num_per_process=num_at_once,
        )

    @cached_property
    def _stage_key(self) -> str:
        schema, split = self.schema, self.config.split
        columns = (schema.label, schema.dense, schema.sparse, time_column(split))
        made_by = (__version__, source_commit())
        return digest(made_by, self.config.source, columns, self.remedy is None)

    @cached_property
    def staged(self) -> list[Done[StagedInput]]:
        """What is known of the staged files, whether or not they are still there."""
        staged = self.runner.run(self._stage, with_files=False)
        for done in staged:
            if done.result.bad_rows:
                logger.warning(
                    "%s: left out %d bad rows, the first in line %d: %s",
                    done.result.input.name,
                    done.result.input.num_bad_rows,
                    done.result.bad_rows[0].line,
                    done.result.bad_rows[0].reason,
                )
        _require_one_kind_of_time([done.result for done in staged])
        return staged

    def _stage_files(self) -> None:
        self.runner.run(self._stage)

    @cached_property
    def _spans(self) -> StagedSpans:
        groups = [-(-done.result.input.num_rows // ROW_GROUP_ROWS) for done in self.staged]
        return StagedSpans(
            work=self.work,
            num_inputs=len(self.inputs),
            spans=tuple(spans(groups)),
            shared=self.shared,
        )

    @cached_property
    def _span_bytes(self) -> list[int]:
        """Staged bytes of each span, about."""
        size = sum(e.size_bytes for done in self.staged for e in done.files.values())
        num_chunks = sum(map(len, self._spans.spans))
        return [size * len(span) // num_chunks for span in self._spans.spans]

    # split

    @cached_property
    def _split_key(self) -> str:
        inputs = [done.result.input for done in self.staged]
        return digest(self._stage_key, inputs, self.config.split, self.config.seed)

    @cached_property
    def splits(self) -> FoundSplits:
        """The splits and their sizes."""
        step = Step(
            name="split",
            result=FoundSplits,
            keys=[self._split_key],
            sizes=[sum(self._span_bytes)],
            function=FindSplits(
                staged=self._spans,
                schema=self.schema,
                split=self.config.split,
                seed=self.config.seed,
                memory_bytes=self.budget.spare_bytes // 2,
            ),
            num_per_process=1,
            needs=self._stage_files,
        )
        return self.runner.run(step)[0].result

    # fit

    @cached_property
    def _fitted(self) -> dict[str, DenseStatistics | tuple[float, ...]]:
        """Statistics of dense and edges of sparse features, by name."""
        features: list[DenseFeature | SparseFeature] = []
        features += [f for f in self.schema.dense if f.transform == "standardize"]
        features += [f for f in self.schema.sparse if f.key == "quantile"]
        num_at_once, memory_bytes = self.budget.split(LEAST_TASK_BYTES)
        step: Step[DenseStatistics | tuple[float, ...]] = Step(
            name="fit",
            result=DenseStatistics | tuple[float, ...],  # type: ignore[arg-type]
            keys=[digest(self._split_key, feature) for feature in features],
            sizes=[sum(self._span_bytes) // 40 + 1 for _ in features],
            function=FitFeature(
                staged=self._spans,
                splits=self.splits.splits,
                features=tuple(features),
                memory_bytes=memory_bytes // 2,
            ),
            num_per_process=num_at_once,
            needs=self._stage_files,
        )
        found = [done.result for done in self.runner.run(step)]
        return {feature.name: it for feature, it in zip(features, found, strict=True)}

    @cached_property
    def _edges(self) -> dict[str, tuple[float, ...]]:
        return {name: it for name, it in self._fitted.items() if isinstance(it, tuple)}

    def _tables_of(self, *encodings: str) -> list[tuple[Table, tuple[SparseFeature, ...]]]:
        """Tables of these encodings, and their features."""
        return [
            (table, tuple(f for f in self.schema.sparse if f.table == table.name))
            for table in self.schema.tables
            if table.encoding in encodings
        ]

    @cached_property
    def _tables(self) -> list[tuple[Table, tuple[SparseFeature, ...]]]:
        return self._tables_of("vocabulary")

    @cached_property
    def _count_key(self) -> str:
        return digest(self._split_key, [features for _, features in self._tables], self._edges)

    @cached_property
    def _count(self) -> Step[None]:
        num_at_once, memory_bytes = self.budget.split(LEAST_TASK_BYTES)
        return Step(
            name="count",
            result=type(None),
            keys=[self._count_key] * len(self._spans.spans),
            sizes=self._span_bytes,
            function=CountSpan(
                staged=self._spans,
                splits=self.splits.splits,
                tables=tuple(features for _, features in self._tables),
                edges=self._edges,
                memory_bytes=memory_bytes,
            ),
            num_per_process=num_at_once,
            needs=self._stage_files,
        )

    @cached_property
    def _run_bytes(self) -> list[int]:
        """Bytes of all counts of each table, whether or not they are still there."""
        counted = self.runner.run(self._count, with_files=False)
        return [
            sum(done.files[run_path(span, table)].size_bytes for span, done in enumerate(counted))
            for table in range(len(self._tables))
        ]

    def _count_files(self) -> None:
        self.runner.run(self._count)

    @cached_property
    def merged(self) -> list[Done[TableEncoding]]:
        """The tables with a vocabulary; their files lie in the dataset to be."""
        if not self._tables:
            return []
        # A table too large to be merged beside others is merged with all memory.
        largest = _MERGE_BYTES * max(self._run_bytes)
        num_at_once, memory_bytes = self.budget.split(max(LEAST_TASK_BYTES, largest))
        step = Step(
            name="merge",
            result=TableEncoding,
            keys=[digest(self._count_key, table) for table, _ in self._tables],
            sizes=self._run_bytes,
            function=MergeTable(
                staged=self._spans,
                tables=tuple(self._tables),
                edges=self._edges,
                memory_bytes=memory_bytes,
            ),
            num_per_process=num_at_once,
            needs=self._count_files,
        )
        merged = self.runner.run(step)
        shutil.rmtree(self.work / "counts", ignore_errors=True)
        return merged

    @cached_property
    def numbered(self) -> list[Done[TableEncoding]]:
        """The tables whose rows all rows decide; their files lie in the dataset to be."""
        tables = self._tables_of("reference", "identity")
        num_at_once, memory_bytes = self.budget.split(LEAST_TASK_BYTES)
        step = Step(
            name="number",
            result=TableEncoding,
            keys=[digest(self._split_key, table, features) for table, features in tables],
            sizes=[sum(self._span_bytes) // 40 + 1 for _ in tables],
            function=NumberTable(
                staged=self._spans, tables=tuple(tables), memory_bytes=memory_bytes
            ),
            num_per_process=num_at_once,
            needs=self._stage_files,
        )
        return self.runner.run(step)

    @cached_property
    def encoding(self) -> Encoding:
        """Everything fitted."""
        tables = {
            table.name: TableEncoding(num_embeddings=table.max_rows, vocabulary="", coverage=1.0)
            for table in self.schema.tables
        }
        made = [*zip(self._tables, self.merged, strict=True)]
        made += zip(self._tables_of("reference", "identity"), self.numbered, strict=True)
        for (table, _), done in made:
            tables[table.name] = done.result
        dense = {n: _usable(n, it) for n, it in self._fitted.items() if not isinstance(it, tuple)}
        return Encoding(
            hash_version=HASH_VERSION, dense=dense, quantiles=self._edges, tables=tables
        )

    # encode

    @cached_property
    def _plan(self) -> PartPlan:
        counts = self.splits.counts.rows
        return PartPlan.of(
            counts.sum(0),
            _row_bytes([done.result for done in self.staged], self._columns),
            shuffle=self.config.shuffle,
            seed=self.config.seed,
        )

    @cached_property
    def _columns(self) -> pa.Schema:
        return encoded_schema(self.schema, self.encoding)

    @cached_property
    def _encode_key(self) -> str:
        return digest(self._split_key, self.encoding, self.config.shuffle)

    def _encoded_files(self) -> None:
        vocabulary_bytes = require_fit(self.encoding, self.budget.spare_bytes // 2)
        free = Budget(self.budget.spare_bytes - vocabulary_bytes, self.budget.num_per_process)
        num_at_once, memory_bytes = free.split(LEAST_TASK_BYTES)
        counts = self.splits.counts.rows
        step = Step(
            name="encode",
            result=type(None),
            keys=[self._encode_key] * len(counts),
            sizes=self._span_bytes,
            function=EncodeSpan(
                staged=self._spans,
                splits=self.splits.splits,
                schema=self.schema,
                encoding=self.encoding,
                plan=self._plan,
                ranks=tuple(map(tuple, (counts.cumsum(0) - counts).tolist())),
                buffer_bytes=memory_bytes // 4,
            ),
            num_per_process=num_at_once,
            needs=self._stage_files,
        )
        self.runner.run(step)
        self.shared.clear()
        shutil.rmtree(self.work / "staged", ignore_errors=True)

    # write

    def written(self) -> list[Done[None]]:
        """The parts; their files lie in the dataset to be."""
        num_at_once, _ = self.budget.split(PART_BYTES * 5 // 2)
        step = Step(
            name="write",
            result=type(None),
            keys=[self._encode_key] * len(self._plan),
            sizes=[PART_BYTES] * len(self._plan),
            function=WritePart(
                work=self.work,
                num_spans=len(self._spans.spans),
                schema=self.schema,
                encoding=self.encoding,
                plan=self._plan,
            ),
            num_per_process=num_at_once,
            needs=self._encoded_files,
        )
        return self.runner.run(step)


def _require_one_kind_of_time(staged: Sequence[StagedInput]) -> None:
    """Refuse files whose times cannot be compared."""
    names: dict[str, str] = {}
    for file in staged:
        if file.time:
            names.setdefault(file.time, file.input.name)
    if len(names) > 1:
        (kind, name), (other_kind, other_name) = names.items()
        raise DataError(
            f"split: the times in {name} are {kind}, in {other_name} {other_kind}; write them alike"
        )


def _usable(name: str, statistics: DenseStatistics) -> DenseStatistics:
    """A standard deviation to divide by."""
    if statistics.std:
        return statistics
    logger.warning(
        "dense feature %r is %g in every train row: it tells nothing; its standard deviation is "
        "taken as 1",
        name,
        statistics.mean,
    )
    return DenseStatistics(mean=statistics.mean, std=1.0)


def _row_bytes(staged: Sequence[StagedInput], columns: pa.Schema) -> float:
    """Encoded bytes of a row, on average over all rows."""
    total = 0.0
    num_rows = sum(file.input.num_rows for file in staged)
    for column in columns:
        if pa.types.is_list(column.type):
            name = sparse_column(column.name.removesuffix(".weights"))
            length = sum(file.num_ids[name] for file in staged) / max(1, num_rows)
            total += 4 + length * column.type.value_type.bit_width / 8
        else:
            total += column.type.bit_width / 8
    return total
