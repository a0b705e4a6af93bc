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
from fastdlrm.data.source import stage_file
from fastdlrm.errors import DataError
from fastdlrm.train.evaluate import scores
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

    Returns:
        Rows scored.

    Raises:
        DataError: An input is malformed, or `out` cannot be written.
    """
    model = run.load_model(checkpoint).to(device)
    encoder = Encoder.load(run.folder, run.manifest.schema, run.manifest.encoding)
    schema = run.manifest.schema
    size = run.recipe.train.eval_batch_size
    temporary = out.with_name(f".{out.name}.tmp")
    num_rows = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=out.parent, prefix=".predict-") as folder,
            pq.ParquetWriter(temporary, SCHEMA) as writer,
        ):
            for path in inputs:
                staged = _stage(run, path, Path(folder) / "staged.parquet", labelled)
                row = 0
                for batch in _encoded(encoder, staged):
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


def _stage(run: Run, path: Path, out: Path, labelled: bool) -> Path:
    source, schema = run.recipe.data.source, run.manifest.schema
    try:
        stage_file(path, source, schema, out, on_bad_row="error", labelled=labelled)
    except DataError as problem:
        # With a cause, the disk or the file as a whole is at fault, not its columns.
        if not labelled or problem.__cause__ is not None:
            raise
        raise DataError(f"{problem}; if the file has no labels, pass --unlabelled") from problem
    return out


def _encoded(encoder: Encoder, staged: Path) -> Iterator[pa.RecordBatch]:
    for batch in pq.ParquetFile(staged).iter_batches(ROWS_A_CHUNK):
        yield encoder.encode(batch)


def _output(name: str, first_row: int, probabilities: np.ndarray) -> pa.RecordBatch:
    rows = np.arange(first_row, first_row + len(probabilities))
    return pa.record_batch([pa.array([name] * len(rows)), rows, probabilities], schema=SCHEMA)
