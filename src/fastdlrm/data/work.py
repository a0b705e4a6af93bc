"""The work folder of a `prepare`: hidden beside the dataset to be, kept until that is whole.

One process at a time holds it. What a killed or failed one finished there is found by the next.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastdlrm.contracts.manifest import sync_folder
from fastdlrm.data.journal import Journal
from fastdlrm.data.write import disk_errors, require_free
from fastdlrm.errors import DataError

logger = logging.getLogger(__name__)


def work_path(out: Path) -> Path:
    """Where the work folder of a dataset lies."""
    out = out.resolve()
    return out.parent / f".{out.name}.prepare"


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Hold the work folder; after an error it is kept if anything was finished, and that is said.

    Args:
        out: Folder to make at the end; absent or empty.

    Raises:
        DataError: `out` holds something, another process holds the folder, or the disk is full or
            refuses.
    """
    with disk_errors(out):
        require_free(out)
        work = work_path(out)
        try:
            work.mkdir(parents=True, exist_ok=True)
            with _lock(work, out):
                yield work
        except BaseException:
            _leave(work, out)
            raise


def publish(work: Path, dataset: Path, out: Path) -> None:
    """Make a finished folder appear as `out` and remove the work folder.

    What is large goes first: a kill at any moment leaves either the means to go on, or `out` and
    a few records.
    """
    out = out.resolve()
    for path in work.iterdir():
        if path.is_dir() and path not in (dataset, work / "journal"):
            shutil.rmtree(path)
    for folder, _, _ in os.walk(dataset):
        sync_folder(Path(folder))
    dataset.replace(out)
    sync_folder(out.parent)
    shutil.rmtree(work)


@contextmanager
def _lock(work: Path, out: Path) -> Iterator[None]:
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise DataError(
                f"{out}: another prepare is making it; wait, or name another folder"
            ) from problem
        yield


def _leave(work: Path, out: Path) -> None:
    """Remove the work folder if nothing was finished in it and no other process holds it.

    A signal may have come at any moment, before the folder was held too.
    """
    with suppress(FileNotFoundError, DataError), _lock(work, out):
        if Journal(work).is_empty:
            shutil.rmtree(work, ignore_errors=True)
            return
        size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        logger.warning(
            "%s keeps what is done, %d MiB: the same command goes on from there; remove it to "
            "begin afresh",
            work,
            size >> 20,
        )
