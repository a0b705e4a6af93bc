"""Dataset -> int32 files, one a split: the layout that `fastdlrm.data.int32` reads.

Dense numbers are written as the whole numbers they were before their transform. One up to 1,048,574
is what the raw file held, but for negative and missing ones; beyond, float32 of log(1 + x) has lost
digits, and the number written is one with the same logarithm. Ids are written as they are.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.schema import DenseFeature, Schema
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.write import disk_errors, new_folder, seal
from fastdlrm.errors import DataError

COUNTS = "fea_count.npz"
"""The reference reads the sizes of its tables from such a file."""

_BLOCK_ROWS = 65_536
_MAX_INT32 = 2**31 - 1


def export_int32(
    dataset: Dataset, out: Path, progress: Callable[[int], None] | None = None
) -> dict[str, int]:
    """Write `out`/SPLIT.bin for each split, and `out`/fea_count.npz, the rows of each table.

    Args:
        dataset: Of single ids; dense features of transform "log1p" or "none".
        out: Folder to make; absent or empty.
        progress: Called with the number of rows written since it was last called.

    Returns:
        Rows of each split.

    Raises:
        DataError: A feature does not fit the layout, a dense value is no whole number of 32 bits,
            or the disk refuses.
    """
    schema, tables = dataset.schema, dataset.manifest.encoding.tables
    _require_single_ids(schema)
    sizes = [tables[feature.table].num_embeddings for feature in schema.sparse]
    _require_int32(schema, sizes)
    num_rows = {}
    with new_folder(out) as folder:
        for name in dataset.manifest.splits:
            path = folder / f"{name}.bin"
            num_rows[name] = _write_split(dataset, name, path, progress or (lambda rows: None))
            seal(path)
        np.savez(folder / COUNTS, counts=np.array(sizes, dtype=np.int32))
        seal(folder / COUNTS)
    return num_rows


def _require_single_ids(schema: Schema) -> None:
    for feature in schema.sparse:
        if feature.bag:
            raise DataError(
                f"sparse feature {feature.name!r}: a bag; a row of int32 holds one id a feature: "
                "prepare without it"
            )
    for dense in schema.dense:
        if dense.transform == "standardize":
            raise DataError(
                f"dense feature {dense.name!r}: transform 'standardize' cannot be undone to whole "
                "numbers; prepare it with 'log1p' or 'none'"
            )


def _require_int32(schema: Schema, sizes: list[int]) -> None:
    for feature, size in zip(schema.sparse, sizes, strict=True):
        if size - 1 > _MAX_INT32:
            raise DataError(
                f"table {feature.table!r}: {size} rows; int32 holds ids up to {_MAX_INT32}: "
                "prepare with a lower max_rows"
            )


def _write_split(dataset: Dataset, split: str, path: Path, progress: Callable[[int], None]) -> int:
    schema = dataset.schema
    num_columns = 1 + len(schema.dense) + len(schema.sparse)
    num_rows = 0
    with disk_errors(path), path.open("wb") as file:
        for batch in dataset.record_batches(split):
            for start in range(0, batch.num_rows, _BLOCK_ROWS):
                rows = batch.slice(start, _BLOCK_ROWS)
                block = np.empty((rows.num_rows, num_columns), dtype="<i4")
                _fill(block, rows, schema)
                file.write(block.data)
                num_rows += rows.num_rows
                progress(rows.num_rows)
    return num_rows


def _fill(block: NDArray[np.int32], rows: pa.RecordBatch, schema: Schema) -> None:
    block[:, 0] = rows.column("label").to_numpy()
    for k, feature in enumerate(schema.dense, start=1):
        block[:, k] = _whole_numbers(feature, rows.column(feature.name).to_numpy())
    for k, sparse in enumerate(schema.sparse, start=1 + len(schema.dense)):
        block[:, k] = rows.column(sparse.name).to_numpy()


def _whole_numbers(feature: DenseFeature, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """The numbers before the transform."""
    is_log = feature.transform == "log1p"
    numbers = encoded.astype(np.float64)
    whole = np.rint(np.expm1(numbers) if is_log else numbers)
    again = np.log1p(whole) if is_log else whole
    wrong = (again.astype(np.float32) != encoded) | (np.abs(whole) > _MAX_INT32)
    if wrong.any():
        found = numbers[np.flatnonzero(wrong)[0]]
        raise DataError(
            f"dense feature {feature.name!r}: {np.expm1(found) if is_log else found:g} is no whole "
            f"number of 32 bits; prepare without the feature"
        )
    return whole
