"""A preset's model with drawn weights, exported without a run, and rows to query it with.

Shapes: n rows, N dense features, F sparse features, B samples.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from fastdlrm.batch import Batch
from fastdlrm.bench.models import BenchModel
from fastdlrm.contracts.exported import ExportedManifest
from fastdlrm.contracts.signature import DENSE, IDS
from fastdlrm.data.random_dataset import random_encoding
from fastdlrm.export.write import ExportOptions, Source, export
from fastdlrm.kernels.cpu.matmul import calibrate

NAME = "model"
"""What requests call it."""


def export_drawn(model: BenchModel, out: Path) -> ExportedManifest:
    """Export a model whose weights are drawn.

    Args:
        model: What is exported; on the CPU.
        out: Folder to make.

    Raises:
        ConfigError: The tables do not fit the memory.
        ExportError: `out` holds something.
    """
    source = Source(
        model=model.build().eval(),
        config=model.recipe.model,
        schema=model.schema,
        encoding=random_encoding(model.schema),
        vocabularies=out.parent,  # random tables have none
        source=model.recipe.data.source,
        matmul=calibrate().way,
        step=0,
        run_sha256="",
    )
    return export(source, ExportOptions(name=NAME), out)


def write_queries(path: Path, batch: Batch) -> None:
    """Write encoded rows as the load generator reads them.

    Args:
        path: Arrow file; columns `dense` (N numbers a row) and `ids` (F ids a row, or F bags).
        batch: n rows, on the CPU.
    """
    num_rows, num_dense = batch.dense.shape
    F = batch.sparse.num_features
    columns: dict[str, pa.Array] = {}
    if num_dense:
        flat = pa.array(np.ascontiguousarray(batch.dense.numpy()).reshape(-1))
        columns[DENSE] = pa.FixedSizeListArray.from_arrays(flat, num_dense)
    if batch.sparse.lengths is None:
        flat = pa.array(batch.sparse.ids.numpy().reshape(F, num_rows).T.reshape(-1))
        columns[IDS] = pa.FixedSizeListArray.from_arrays(flat, F)
    else:
        columns[IDS] = pa.FixedSizeListArray.from_arrays(_row_major_bags(batch), F)
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _row_major_bags(batch: Batch) -> pa.Array:
    """All bags of row 0, then all of row 1, ...: n * F lists."""
    assert batch.sparse.lengths is not None
    F, num_rows = batch.sparse.num_features, batch.num_samples
    ends = batch.sparse.offsets().numpy()
    ids = pa.array(batch.sparse.ids.numpy())
    bags = pa.LargeListArray.from_arrays(pa.array(ends), ids)
    order = np.arange(F * num_rows).reshape(F, num_rows).T.reshape(-1)
    return bags.take(pa.array(order))
