"""How an engine runs, and what each of its workers is to do."""

from pathlib import Path

import msgspec

from fastdlrm.serve.messages import Task
from fastdlrm.serve.pool import cores_of


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine runs."""

    loader: str
    """module:function that loads the model in a worker: takes a `Task`, gives a `ServedModel`."""
    num_workers: int = 1
    max_batch_rows: int = 256
    """Larger queries are cut, smaller ones put together up to it."""
    max_queue_rows: int = 65536
    """Samples that may wait."""
    max_queue_delay_s: float = 0.0
    """How long a query may wait for others while a worker idles."""
    arena_bytes: int = 256 * 2**20
    """Memory for the inputs of queries without an answer."""
    depth: int = 2
    """Batches a worker may have at once; the second only when it is full."""
    pin: bool = True
    """Whether each worker stays on a core of its own, where there are as many."""
    check: bool = True
    """Whether the first worker checks the model's files and golden scores."""
    hang_timeout_s: float = 10.0
    """A worker whose batch takes longer is ended."""
    start_timeout_s: float = 300.0
    """For a worker to be ready."""
    device: str = "cpu"
    program: str = "auto"
    """What computes the dense part."""


def tasks_of(folder: Path, options: EngineOptions) -> list[Task]:
    """What each worker is started with; the first alone checks the files."""
    num_workers = options.num_workers
    cores = cores_of(num_workers) if options.pin else [-1] * num_workers
    return [
        Task(
            index=index,
            loader=options.loader,
            folder=str(folder),
            check=options.check and index == 0,
            device=options.device,
            program=options.program,
            max_batch_rows=options.max_batch_rows,
            core=core,
        )
        for index, core in enumerate(cores)
    ]
