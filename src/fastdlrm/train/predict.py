"""Raw files -> scores, in input order, with the encoding a run was trained on."""

import os
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
from fastdlrm.data.write import disk_errors
from fastdlrm.errors import DataError
from fastdlrm.metrics.logistic import logistic
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
) -> int:
    """Score every row of raw files and write a Parquet file.

    Columns: `file` (its path as given), `row` (from 0 in its file), `score` (probability of a
    positive label).
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
    if out.is_dir():
        raise DataError(f"{out}: a folder; name the Parquet file to write")
    use(run.folder, device)
    scorer = _Scorer(run, checkpoint, device)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    num_rows = 0
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                tempfile.TemporaryDirectory(dir=out.parent, prefix=".predict-") as folder,
                pq.ParquetWriter(temporary, SCHEMA) as writer,
            ):
                staged = Path(folder) / "staged.parquet"
                for path in inputs:
                    _stage(run, path, staged, labelled)
                    for rows in scorer.scores_of(_text(path), staged):
                        writer.write_batch(rows)
                        num_rows += rows.num_rows
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    return num_rows


class _Scorer:
    """A run's encoder and model as one."""

    def __init__(self, run: Run, checkpoint: str, device: torch.device) -> None:
        self._schema = run.manifest.schema
        self._encoder = Encoder.load(run.folder, self._schema, run.manifest.encoding)
        self._model = run.load_model(checkpoint).to(device)
        self._batch_size = run.recipe.train.eval_batch_size
        self._device = device

    def scores_of(self, name: str, staged: Path) -> Iterator[pa.RecordBatch]:
        """A staged file's scores, as SCHEMA says, in pieces."""
        first_row = 0
        for batch in pq.ParquetFile(staged).iter_batches(ROWS_A_CHUNK):
            encoded = Rows([self._encoder.encode(batch)], self._schema)
            pieces = scores(self._model, encoded, self._batch_size, self._device)
            logits = torch.cat([logits for logits, _ in pieces]).numpy()
            probabilities = logistic(logits.astype(np.float64)).astype(np.float32)
            rows = np.arange(first_row, first_row + len(probabilities))
            names = pa.array([name] * len(rows))
            yield pa.record_batch([names, rows, probabilities], schema=SCHEMA)
            first_row += len(rows)


def _text(path: Path) -> str:
    """A path as text; bytes of it that are not UTF-8 are written as \\x and two digits."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _stage(run: Run, path: Path, out: Path, labelled: bool) -> None:
    source, schema = run.recipe.data.source, run.manifest.schema
    remedy = "correct the row"
    if labelled:
        remedy += "; if the file has no labels, pass --unlabelled"
    try:
        stage_file(path, source, schema, out, remedy=remedy, labelled=labelled)
    except DataError as problem:
        if labelled and f"lacks column {schema.label.column!r}" in str(problem):
            raise DataError(f"{problem}, or pass --unlabelled") from problem
        raise
