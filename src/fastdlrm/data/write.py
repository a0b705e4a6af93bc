"""Writing a dataset: parts, and a folder that appears complete or not at all."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from fastdlrm.contracts.manifest import FileEntry, SplitInfo, entry_of, sync_folder
from fastdlrm.errors import DataError

PART_BYTES = 128 << 20
"""Most bytes of a part that is filled batch by batch."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PartsWritten(NamedTuple):
    """A split on disk: its parts' entries in the manifest, and its size."""

    files: dict[str, FileEntry]
    info: SplitInfo


def write_part(path: Path, rows: pa.RecordBatch) -> FileEntry:
    """Write rows as an uncompressed Arrow IPC file of one record batch, durably.

    Its columns can be memory-mapped as they lie on disk. Equal rows give equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_batch(rows)
    return seal(path, rows.num_rows)


def write_parts(
    folder: Path, split: str, batches: Iterable[pa.RecordBatch], part_bytes: int = PART_BYTES
) -> PartsWritten:
    """Write a split of a dataset batch by batch.

    Args:
        folder: The dataset.
        split: Its name.
        batches: Encoded rows, labelled.
        part_bytes: Most bytes of a part, unless one batch has more. Memory holds a part twice.
    """
    files: dict[str, FileEntry] = {}
    waiting: list[pa.RecordBatch] = []
    num_bytes = num_positives = 0

    def flush() -> None:
        name = f"{split}/part-{len(files):05d}.arrow"
        (rows,) = pa.Table.from_batches(waiting).combine_chunks().to_batches()
        files[name] = write_part(folder / name, rows)
        waiting.clear()

    for batch in batches:
        if waiting and num_bytes + batch.nbytes > part_bytes:
            flush()
            num_bytes = 0
        waiting.append(batch)
        num_bytes += batch.nbytes
        num_positives += pc.sum(batch.column("label")).as_py()
    if waiting:
        flush()
    num_rows = sum(entry.num_rows for entry in files.values())
    return PartsWritten(files, SplitInfo(num_rows=num_rows, num_positives=num_positives))


def seal(path: Path, num_rows: int = 0) -> FileEntry:
    """Make a written file durable; returns its entry in the manifest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return entry_of(path, num_rows)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill under a hidden name beside `out`, renamed to `out` when all went well.

    On any error it is removed, and `out` stays as it was.

    Raises:
        DataError: `out` holds something, or the disk is full or refuses.
    """
    out = out.resolve()
    with disk_errors(out):
        require_free(out)
        partial = out.parent / f".{out.name}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had our id
        partial.mkdir(parents=True)
        try:
            yield partial
            for folder, _, _ in os.walk(partial):
                sync_folder(Path(folder))
            partial.replace(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def require_free(out: Path) -> None:
    """Refuse to overwrite.

    Raises:
        DataError: `out` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; remove it or name another")


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn what the disk and DuckDB complain about into a `DataError`.

    Args:
        out: What is being written.

    Raises:
        DataError: With the way out: free space, more memory, or the path to look at.
    """
    try:
        yield
    except duckdb.OutOfMemoryException as problem:
        raise DataError(f"{out}: {_first_line(problem)}; raise --memory") from problem
    except (OSError, duckdb.IOException) as problem:
        no_space = getattr(problem, "errno", None) in _NO_SPACE or "space" in str(problem)
        what_to_do = "free disk space" if no_space else "check the path, its disk and permissions"
        found = _first_line(problem)
        raise DataError(f"{out}: the disk refuses: {found}; {what_to_do}") from problem


def _first_line(problem: Exception) -> str:
    """DuckDB's messages go on with advice on DuckDB."""
    return str(problem).splitlines()[0]
