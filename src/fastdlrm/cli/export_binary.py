"""`fastdlrm export-binary`: dataset -> binary files for the DLRM reference."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import Json, emit
from fastdlrm.cli.progress import bar


def export_binary(
    data: Annotated[Path, typer.Option(help="Dataset folder made by `fastdlrm prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist or be empty.")],
    json: Json = False,
) -> None:
    """Write a dataset as rows of int32, the binary layout of the DLRM reference (MLPerf v1).

    train.bin, validation.bin and test.bin, a row being label, dense numbers before their logarithm
    and ids, and fea_count.npz with the rows of each table. The reference reads 13 dense numbers and
    26 ids, and calls validation "test". `prepare --config criteo-binary` reads the files back.

        fastdlrm export-binary --data DATA --out BINARY
    """
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.data.export_int32 import export_int32

    dataset = Dataset.open(data)
    total = sum(split.num_rows for split in dataset.manifest.splits.values())
    with bar("export", total) as advance:
        num_rows = export_int32(dataset, out, advance)
    num_dense, num_sparse = len(dataset.schema.dense), len(dataset.schema.sparse)
    report = {
        "num_rows": num_rows,
        "num_dense": num_dense,
        "num_sparse": num_sparse,
        "out": str(out),
    }
    layout = f"label, {num_dense} dense, {num_sparse} ids: {4 * (1 + num_dense + num_sparse)} bytes"
    emit(report, json, lambda: {**num_rows, "a row": layout, "folder": str(out)})
