"""Raw files -> scores, in input order, with the encoding a run was trained on."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.data.source import connect, stage_file
from fastdlrm.errors import DataError
from fastdlrm.train.evaluate import scores
from fastdlrm.train.matmul import use
from fastdlrm.train.run import Run

ROWS_A_CHUNK = 65_536
SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("score", pa.float32())])


def predict(
    run: Run,
    inputs: Sequence[Path],
    out: Path,
    *,
    checkpoint: str,
    device: torch.device,
    labelled: bool,
    memory_bytes: int,
) -> int:
    """Score every row of raw files and write a Parquet file.

    Columns: `file` (name), `row` (from 0 in its file), `score` (probability of a positive label).
    A bad row is an error: a score must not be silently missing.

    Args:
        run: Holds the encoding, the source's layout and the model.
        inputs: Raw files of the format the model was trained from.
        out: Parquet file to write, atomically.
        checkpoint: "best", "last" or a step.
        device: Where to compute.
        labelled: Whether the files hold the label column.
        memory_bytes: Limit of the reader.

    Returns:
        Rows scored.

    Raises:
        DataError: An input is malformed, or `out` cannot be written.
    """
    use(run.folder, device)
    model = run.load_model(checkpoint).to(device)
    encoder = Encoder.load(run.folder, run.manifest.schema, run.manifest.encoding)
    source, schema = run.recipe.data.source, run.manifest.schema
    size = run.recipe.train.eval_batch_size
    temporary = out.with_name(f".{out.name}.tmp")
    num_rows = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=out.parent, prefix=".predict-") as folder,
            pq.ParquetWriter(temporary, SCHEMA) as writer,
        ):
            connection = connect(memory_bytes, Path(folder), 2)
            for path in inputs:
                staged = stage_file(
                    connection,
                    path,
                    source,
                    schema,
                    Path(folder) / "staged.parquet",
                    on_bad_row="error",
                    labelled=labelled,
                )
                row = 0
                for batch in _encoded(encoder, staged.path):
                    logits = [z for z, _ in scores(model, Rows([batch], schema), size, device)]
                    probabilities = torch.sigmoid(torch.cat(logits)).numpy()
                    writer.write_batch(_output(path.name, row, probabilities))
                    row += len(probabilities)
                num_rows += row
        temporary.replace(out)
    except OSError as problem:
        raise DataError(f"{out}: cannot be written: {problem.strerror or problem}") from problem
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def _encoded(encoder: Encoder, staged: Path) -> Iterator[pa.RecordBatch]:
    for batch in pq.ParquetFile(staged).iter_batches(ROWS_A_CHUNK):
        yield encoder.encode(batch)


def _output(name: str, first_row: int, probabilities: np.ndarray) -> pa.RecordBatch:
    rows = np.arange(first_row, first_row + len(probabilities))
    return pa.record_batch([pa.array([name] * len(rows)), rows, probabilities], schema=SCHEMA)
