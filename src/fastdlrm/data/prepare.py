"""Raw files -> dataset: stage, split, fit, encode, shuffle, write.

Invariants: the dataset's bytes are a function of the inputs, the config and the package version;
memory is bounded by `memory_bytes` whatever the inputs' size; `out` appears complete or not at all.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastdlrm import __version__
from fastdlrm.config import to_tree
from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.manifest import (
    VERSIONS,
    DatasetManifest,
    FileEntry,
    source_commit,
    write_manifest,
)
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.config import DataConfig
from fastdlrm.data.encode import Encoder, encoded_schema, require_fit
from fastdlrm.data.fit import Fitter
from fastdlrm.data.shuffle import PART_BYTES, PartPlan, Piece, load_part, pieces, spool_path
from fastdlrm.data.source import StagedFile, stage_file
from fastdlrm.data.split import SplitCounts, Splits, count_splits, resolve_splits, time_column
from fastdlrm.data.sql import connect
from fastdlrm.data.staged import TIME, Chunk, StagedRows, sparse_column
from fastdlrm.data.threads import map_in_order
from fastdlrm.data.vocabulary import check_tables
from fastdlrm.data.write import new_folder, seal, write_part
from fastdlrm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

LIBRARY_BYTES = 320 << 20
"""Resident size of the interpreter and the libraries, about."""
LEAST_MEMORY_BYTES = 768 << 20
"""Below this a part cannot be permuted beside the libraries."""

BadRowPolicy = Literal["error", "skip"]
Progress = Callable[[str, float], None]


def prepare(
    inputs: Sequence[Path],
    config: DataConfig,
    out: Path,
    *,
    memory_bytes: int,
    num_workers: int = 2,
    on_bad_row: BadRowPolicy = "error",
    progress: Progress | None = None,
) -> DatasetManifest:
    """Make a dataset.

    Args:
        inputs: Raw files; rows are numbered through them in this order.
        config: Layout, features, splits, shuffle.
        out: Folder to make; absent or empty.
        memory_bytes: Most memory to take, libraries included.
        num_workers: Threads; each reads a file or encodes a row group at a time.
        on_bad_row: Whether a row that cannot be read is an error or left out.
        progress: Called with a stage's name and the share of it that is done.

    Raises:
        ConfigError: Memory is too small, or settings contradict each other.
        DataError: An input cannot be read, a split is empty, the label or a column says nothing,
            `out` is not empty, or the disk is full.
    """
    if memory_bytes < LEAST_MEMORY_BYTES:
        raise ConfigError(
            f"--memory: {memory_bytes >> 20} MiB; {LEAST_MEMORY_BYTES >> 20} MiB is the least"
        )
    if not inputs:
        raise DataError("--input: no file; name at least one")
    schema = config.schema()
    check_tables(schema)
    with new_folder(out) as folder:
        work = folder / "work"
        work.mkdir()
        job = _Job(
            config=config,
            schema=schema,
            folder=folder,
            work=work,
            spare_bytes=memory_bytes - LIBRARY_BYTES,
            num_workers=num_workers,
            progress=progress or (lambda stage, share: None),
        )
        manifest = job.run(inputs, on_bad_row)
        shutil.rmtree(work)
        write_manifest(folder, manifest)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all stages of one `prepare` know.

    Attributes:
        config: The [data] section.
        schema: Spelt out.
        folder: Gets the dataset.
        work: For what is gone at the end.
        spare_bytes: Memory beyond the libraries'.
        num_workers: Threads.
        progress: Told of a stage and its share done.
    """

    config: DataConfig
    schema: Schema
    folder: Path
    work: Path
    spare_bytes: int
    num_workers: int
    progress: Progress

    def run(self, inputs: Sequence[Path], on_bad_row: BadRowPolicy) -> DatasetManifest:
        """All stages; leaves the dataset's files in `folder`, its manifest aside."""
        staged = self._stage(inputs, on_bad_row)
        rows = StagedRows([file.path for file in staged])
        connection = connect(self.spare_bytes // 2, self.work / "duckdb", self.num_workers)
        with connection:
            self.progress("split", 0.0)
            splits = resolve_splits(rows, self.config.split, self.config.seed, connection)
            counts = count_splits(rows, splits, self.config.split)
            self.progress("split", 1.0)
            encoding = self._fit(rows, splits, connection)
        columns = encoded_schema(self.schema, encoding)
        plan = PartPlan.of(
            counts.rows.sum(0),
            _row_bytes(rows, columns),
            shuffle=self.config.shuffle,
            seed=self.config.seed,
        )
        self._encode(rows, splits, counts, encoding, plan)
        for file in staged:
            file.path.unlink()
        files = {
            table.vocabulary: seal(self.folder / table.vocabulary)
            for table in encoding.tables.values()
            if table.vocabulary
        }
        files |= self._write(plan, columns)
        return DatasetManifest(
            kind="dataset",
            version=VERSIONS["dataset"],
            created_by=__version__,
            commit=source_commit(),
            config={"data": to_tree(self.config)},
            files=files,
            inputs=tuple(file.input for file in staged),
            schema=self.schema,
            encoding=encoding,
            splits=counts.infos(),
        )

    def _stage(self, inputs: Sequence[Path], on_bad_row: BadRowPolicy) -> list[StagedFile]:
        time = time_column(self.config.split)

        def stage(numbered: tuple[int, Path]) -> StagedFile:
            number, path = numbered
            out = self.work / f"staged-{number:05d}.parquet"
            return stage_file(
                path,
                self.config.source,
                self.schema,
                out,
                on_bad_row=on_bad_row,
                remedy="correct the row, or pass --on-bad-row skip",
                time_column=time,
            )

        staged = []
        for file in map_in_order(stage, enumerate(inputs), self.num_workers):
            staged.append(file)
            self.progress("stage", len(staged) / len(inputs))
            if file.bad_rows:
                logger.warning(
                    "%s: left out %d bad rows, the first in line %d: %s",
                    file.input.name,
                    file.input.num_bad_rows,
                    file.bad_rows[0].line,
                    file.bad_rows[0].reason,
                )
        _require_one_kind_of_time(staged)
        return staged

    def _fit(
        self, rows: StagedRows, splits: Splits, connection: duckdb.DuckDBPyConnection
    ) -> Encoding:
        fitter = Fitter(
            rows=rows,
            splits=splits,
            schema=self.schema,
            folder=self.folder,
            connection=connection,
            memory_bytes=self.spare_bytes * 3 // 4,
            num_workers=self.num_workers,
        )
        connection.execute(f"SET memory_limit = '{self.spare_bytes // 4}B'")
        return fitter.fit(lambda share: self.progress("fit", share))

    def _encode(
        self,
        rows: StagedRows,
        splits: Splits,
        counts: SplitCounts,
        encoding: Encoding,
        plan: PartPlan,
    ) -> None:
        """Encode all rows and append each to its part's spool, in input order."""
        require_fit(encoding, self.spare_bytes // 2)
        encoder = Encoder.load(self.folder, self.schema, encoding)
        ranks = np.cumsum(counts.rows, axis=0) - counts.rows

        def encode(numbered: tuple[int, Chunk]) -> list[Piece]:
            number, chunk = numbered
            rank = ranks[number].copy()
            found: list[Piece] = []
            for block in rows.read(chunk, rows.schema.names):
                split = splits.assign(block)
                parts = plan.parts_of(split, block.start, rank)
                found += pieces(encoder.encode(block.rows), parts, len(plan))
                rank += np.bincount(split, minlength=len(rank))
            return found

        chunks = enumerate(rows.chunks)
        for done, found in enumerate(map_in_order(encode, chunks, self.num_workers), start=1):
            for piece in found:
                piece.append_to(self.work)
            self.progress("encode", done / len(rows.chunks))

    def _write(self, plan: PartPlan, columns: pa.Schema) -> dict[str, FileEntry]:
        """Turn each spool into a part."""

        def write(part: int) -> tuple[str, FileEntry]:
            spool = spool_path(self.work, part)
            rows = load_part(spool, columns, plan, part)
            spool.unlink()
            return plan.path(part), write_part(self.folder / plan.path(part), rows)

        drawn = [part for part in range(len(plan)) if spool_path(self.work, part).exists()]
        num_at_once = max(1, min(self.num_workers, 2 * self.spare_bytes // (5 * PART_BYTES)))
        files = {}
        for path, entry in map_in_order(write, drawn, num_at_once):
            files[path] = entry
            self.progress("write", len(files) / len(drawn))
        return files


def _require_one_kind_of_time(staged: Sequence[StagedFile]) -> None:
    """Refuse files whose times cannot be compared."""
    names: dict[str, str] = {}
    for file in staged:
        columns = pq.read_schema(file.path)
        if TIME in columns.names:
            is_number = pa.types.is_floating(columns.field(TIME).type)
            names.setdefault("numbers" if is_number else "date-times", file.input.name)
    if len(names) > 1:
        (kind, name), (other_kind, other_name) = names.items()
        raise DataError(
            f"split: the times in {name} are {kind}, in {other_name} {other_kind}; write them alike"
        )


def _row_bytes(rows: StagedRows, columns: pa.Schema) -> float:
    """Encoded bytes of a row, on average over all rows."""
    total = 0.0
    for field in columns:
        if pa.types.is_list(field.type):
            name = field.name.removesuffix(".weights")
            length = rows.num_ids[sparse_column(name)] / max(1, rows.num_rows)
            total += 4 + length * field.type.value_type.bit_width / 8
        else:
            total += field.type.bit_width / 8
    return total
