"""Raw files -> dataset, resumable at every task.

Invariants: the dataset's bytes are a function of the inputs, the config and the package version,
not of memory, workers or interruptions; memory is bounded by `memory_bytes` whatever the inputs'
size; `out` appears complete or not at all.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fastdlrm import __version__
from fastdlrm.config import to_tree
from fastdlrm.contracts.manifest import (
    VERSIONS,
    DatasetManifest,
    source_commit,
    write_manifest,
)
from fastdlrm.data.cluster import cluster
from fastdlrm.data.config import DataConfig
from fastdlrm.data.job import Job
from fastdlrm.data.journal import Journal
from fastdlrm.data.steps import Progress, Runner
from fastdlrm.data.tasks import DATASET, SPILL
from fastdlrm.data.vocabulary import check_tables
from fastdlrm.data.work import publish, work_folder
from fastdlrm.data.workers import Budget, Threads, Workers
from fastdlrm.errors import DataError

BadRowPolicy = Literal["error", "skip"]
_REMEDY = "correct the row, or pass --on-bad-row skip"


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
        job = Job(
            inputs=tuple(path.absolute() for path in inputs),
            config=config,
            schema=schema,
            remedy=None if on_bad_row == "skip" else _REMEDY,
            work=work,
            budget=Budget.of(memory_bytes, workers),
            runner=Runner(Journal(work), workers, progress or (lambda step, done, total: None)),
        )
        manifest = _make(job)
        write_manifest(work / DATASET, manifest)
        publish(work, work / DATASET, out)
    return manifest


def _make(job: Job) -> DatasetManifest:
    """Run all steps; leaves the dataset's files in the work folder, its manifest aside."""
    shutil.rmtree(job.work / SPILL, ignore_errors=True)
    (job.work / DATASET).mkdir(exist_ok=True)
    tables = [done.files for done in (*job.merged, *job.numbered)]
    made = tables + [done.files for done in job.written()]
    return DatasetManifest(
        kind="dataset",
        version=VERSIONS["dataset"],
        created_by=__version__,
        commit=source_commit(),
        config={"data": to_tree(job.config)},
        files={n.removeprefix(f"{DATASET}/"): e for files in made for n, e in files.items()},
        inputs=tuple(done.result.input for done in job.staged),
        schema=job.schema,
        encoding=job.encoding,
        splits=job.splits.counts.infos(),
    )
