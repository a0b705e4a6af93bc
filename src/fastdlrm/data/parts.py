"""The parts of a dataset's split, memory-mapped: nothing is read until it is looked at."""

from pathlib import Path

import pyarrow as pa

from fastdlrm.contracts.manifest import DatasetManifest
from fastdlrm.errors import DataError


def read_parts(folder: Path, manifest: DatasetManifest, split: str) -> list[pa.RecordBatch]:
    """The record batches of a split, in order.

    Args:
        folder: The dataset.
        manifest: Of the dataset.
        split: One that it has.

    Raises:
        DataError: A part is no Arrow file, or the split is not as long as the manifest says.
    """
    parts = sorted(part for part in manifest.files if part.startswith(f"{split}/"))
    batches = [batch for part in parts for batch in _read(folder / part)]
    num_rows, expected = sum(b.num_rows for b in batches), manifest.splits[split].num_rows
    if num_rows != expected:
        raise DataError(
            f"{folder}: split {split!r} holds {num_rows} rows, the manifest says {expected}; "
            "prepare again"
        )
    return batches


def _read(path: Path) -> list[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        return [file.get_batch(i) for i in range(file.num_record_batches)]
    except pa.ArrowInvalid as problem:
        raise DataError(f"{path}: not an Arrow file: {problem}; prepare again") from problem
