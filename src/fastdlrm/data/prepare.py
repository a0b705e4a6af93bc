"""Raw files -> dataset: stage, split, fit, count, merge, encode, write; resumable at every task.

Invariants: the dataset's bytes are a function of the inputs, the config and the package version,
not of memory, workers or interruptions; memory is bounded by `memory_bytes` whatever the inputs'
size; `out` appears complete or not at all.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa

from fastdlrm import __version__
from fastdlrm.config import to_tree
from fastdlrm.contracts.encoding import HASH_VERSION, DenseStatistics, Encoding, TableEncoding
from fastdlrm.contracts.manifest import (
    VERSIONS,
    DatasetManifest,
    source_commit,
    write_manifest,
)
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature, Table
from fastdlrm.data.cluster import cluster
from fastdlrm.data.config import DataConfig
from fastdlrm.data.encode import encoded_schema, require_fit
from fastdlrm.data.journal import Journal, digest
from fastdlrm.data.shuffle import PART_BYTES, PartPlan
from fastdlrm.data.source import ROW_GROUP_ROWS
from fastdlrm.data.split import time_column
from fastdlrm.data.staged import spans, sparse_column
from fastdlrm.data.steps import Done, Progress, Runner, Step
from fastdlrm.data.tasks import (
    DATASET,
    SPILL,
    CountSpan,
    EncodeSpan,
    FindSplits,
    FitFeature,
    FoundSplits,
    MergeTable,
    OnceLoaded,
    StagedInput,
    StagedSpans,
    StageInput,
    WritePart,
)
from fastdlrm.data.vocabulary import check_tables
from fastdlrm.data.work import publish, work_folder
from fastdlrm.data.workers import Budget, Threads, Workers
from fastdlrm.errors import DataError

logger = logging.getLogger(__name__)

BadRowPolicy = Literal["error", "skip"]
_REMEDY = "correct the row, or pass --on-bad-row skip"

LEAST_TASK_BYTES = 160 << 20
"""Memory of a task of any step but the last: a block of rows as it is read and encoded, about."""


def prepare(
    inputs: Sequence[Path],
    config: DataConfig,
    out: Path,
    *,
    memory_bytes: int,
    num_workers: int = 2,
    on_bad_row: BadRowPolicy = "error",
    progress: Progress | None = None,
    ray: str = "",
) -> DatasetManifest:
    """Make a dataset.

    What is finished is kept in a hidden work folder beside `out`. After a kill or an error the same
    call goes on from there. Tasks whose inputs, config or package version have changed since are
    done again, and that is logged.

    Args:
        inputs: Raw files; rows are numbered through them in this order. A file counts as unchanged
            while its name, size and time of change are.
        config: Layout, features, splits, shuffle.
        out: Folder to make; absent or empty.
        memory_bytes: Most memory to take, libraries included, all workers together.
        num_workers: Tasks at once.
        on_bad_row: Whether a row that cannot be read is an error or left out.
        progress: Called with a step's name, its bytes done and all of its bytes.
        ray: Address of a Ray cluster whose processes do the tasks, "local" for one on this machine;
            empty for threads of this process. The folders of inputs and `out` must be shared.

    Raises:
        ConfigError: Memory is too small, settings contradict each other, or Ray is absent.
        DataError: An input cannot be read, a split is empty, the label or a column says nothing,
            `out` is not empty, or the disk is full.
    """
    if not inputs:
        raise DataError("--input: no file; name at least one")
    schema = config.schema()
    check_tables(schema)
    with work_folder(out) as work, cluster(ray, num_workers, work) as processes:
        workers: Workers = processes or Threads(num_workers)
        job = _Job(
            inputs=tuple(path.absolute() for path in inputs),
            config=config,
            schema=schema,
            remedy=None if on_bad_row == "skip" else _REMEDY,
            work=work,
            budget=Budget.of(memory_bytes, workers),
            runner=Runner(Journal(work), workers, progress or (lambda step, done, total: None)),
        )
        manifest = job.run()
        write_manifest(work / DATASET, manifest)
        publish(work, work / DATASET, out)
    return manifest


@dataclass(frozen=True, kw_only=True)
class _Job:
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

    def run(self) -> DatasetManifest:
        """All steps; leaves the dataset's files in the work folder, its manifest aside."""
        shutil.rmtree(self.work / SPILL, ignore_errors=True)
        (self.work / DATASET).mkdir(exist_ok=True)
        written = [d.files for d in self._merged] + [d.files for d in self._written()]
        files = {n.removeprefix(f"{DATASET}/"): e for files in written for n, e in files.items()}
        return DatasetManifest(
            kind="dataset",
            version=VERSIONS["dataset"],
            created_by=__version__,
            commit=source_commit(),
            config={"data": to_tree(self.config)},
            files=files,
            inputs=tuple(done.result.input for done in self._staged),
            schema=self.schema,
            encoding=self._encoding,
            splits=self._splits.counts.infos(),
        )

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
    def _staged(self) -> list[Done[StagedInput]]:
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
        groups = [-(-done.result.input.num_rows // ROW_GROUP_ROWS) for done in self._staged]
        return StagedSpans(
            work=self.work,
            num_inputs=len(self.inputs),
            spans=tuple(spans(groups)),
            shared=self.shared,
        )

    @cached_property
    def _span_bytes(self) -> list[int]:
        """Staged bytes of each span, about."""
        size = sum(e.size_bytes for done in self._staged for e in done.files.values())
        num_chunks = sum(map(len, self._spans.spans))
        return [size * len(span) // num_chunks for span in self._spans.spans]

    # split

    @cached_property
    def _split_key(self) -> str:
        inputs = [done.result.input for done in self._staged]
        return digest(self._stage_key, inputs, self.config.split, self.config.seed)

    @cached_property
    def _splits(self) -> FoundSplits:
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
                splits=self._splits.splits,
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

    @cached_property
    def _tables(self) -> list[tuple[Table, tuple[SparseFeature, ...]]]:
        """Tables with a vocabulary, and their features."""
        return [
            (table, tuple(f for f in self.schema.sparse if f.table == table.name))
            for table in self.schema.tables
            if table.encoding == "vocabulary"
        ]

    @cached_property
    def _count_key(self) -> str:
        return digest(self._split_key, [features for _, features in self._tables], self._edges)

    def _count_files(self) -> None:
        num_at_once, memory_bytes = self.budget.split(LEAST_TASK_BYTES)
        step = Step(
            name="count",
            result=type(None),
            keys=[self._count_key] * len(self._spans.spans),
            sizes=self._span_bytes,
            function=CountSpan(
                staged=self._spans,
                splits=self._splits.splits,
                tables=tuple(features for _, features in self._tables),
                edges=self._edges,
                memory_bytes=memory_bytes // 4 * 3,
            ),
            num_per_process=num_at_once,
            needs=self._stage_files,
        )
        self.runner.run(step)

    @cached_property
    def _merged(self) -> list[Done[TableEncoding]]:
        num_at_once, memory_bytes = self.budget.split(LEAST_TASK_BYTES)
        step = Step(
            name="merge",
            result=TableEncoding,
            keys=[digest(self._count_key, table) for table, _ in self._tables],
            sizes=[1] * len(self._tables),
            function=MergeTable(
                staged=self._spans,
                tables=tuple(self._tables),
                edges=self._edges,
                memory_bytes=memory_bytes // 4 * 3,
            ),
            num_per_process=num_at_once,
            needs=self._count_files,
        )
        merged = self.runner.run(step)
        shutil.rmtree(self.work / "counts", ignore_errors=True)
        return merged

    @cached_property
    def _encoding(self) -> Encoding:
        tables = {
            table.name: TableEncoding(num_embeddings=table.max_rows, vocabulary="", coverage=1.0)
            for table in self.schema.tables
        }
        for (table, _), done in zip(self._tables, self._merged, strict=True):
            tables[table.name] = done.result
        dense = {n: _usable(n, it) for n, it in self._fitted.items() if not isinstance(it, tuple)}
        return Encoding(
            hash_version=HASH_VERSION, dense=dense, quantiles=self._edges, tables=tables
        )

    # encode

    @cached_property
    def _plan(self) -> PartPlan:
        counts = self._splits.counts.rows
        return PartPlan.of(
            counts.sum(0),
            _row_bytes([done.result for done in self._staged], self._columns),
            shuffle=self.config.shuffle,
            seed=self.config.seed,
        )

    @cached_property
    def _columns(self) -> pa.Schema:
        return encoded_schema(self.schema, self._encoding)

    @cached_property
    def _encode_key(self) -> str:
        return digest(self._split_key, self._encoding, self.config.shuffle)

    def _encoded_files(self) -> None:
        vocabulary_bytes = require_fit(self._encoding, self.budget.spare_bytes // 2)
        free = Budget(self.budget.spare_bytes - vocabulary_bytes, self.budget.num_per_process)
        num_at_once, memory_bytes = free.split(LEAST_TASK_BYTES)
        counts = self._splits.counts.rows
        step = Step(
            name="encode",
            result=type(None),
            keys=[self._encode_key] * len(counts),
            sizes=self._span_bytes,
            function=EncodeSpan(
                staged=self._spans,
                splits=self._splits.splits,
                schema=self.schema,
                encoding=self._encoding,
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

    def _written(self) -> list[Done[None]]:
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
                encoding=self._encoding,
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
