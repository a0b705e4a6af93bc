"""Raw files -> scores, in input order, with the encoding a model was trained on."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from fastdlrm.contracts.schema import Schema
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.data.source import stage_file
from fastdlrm.data.write import disk_errors
from fastdlrm.errors import DataError
from fastdlrm.export.model import ExportedModel
from fastdlrm.metrics.logistic import logistic
from fastdlrm.train.evaluate import scores
from fastdlrm.train.matmul import use
from fastdlrm.train.run import Run

ROWS_A_CHUNK = 65_536
MODEL_ROWS = 8192
SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("score", pa.float32())])


class Scorer(Protocol):
    """A model that scores raw files: a run's, or an exported one.

    Attributes:
        schema: Features.
        source: Layout of the raw files.
    """

    schema: Schema
    source: SourceConfig

    def scores(self, staged: pa.RecordBatch) -> NDArray[np.float32]:
        """Probabilities of staged rows, shape (B,).

        Raises:
            DataError: A value is wrong.
        """
        ...


def predict(
    scorer: Scorer,
    inputs: Sequence[Path],
    out: Path,
    *,
    labelled: bool,
) -> int:
    """Score every row of raw files and write a Parquet file.

    Columns: `file` (its path as given), `row` (from 0 in its file), `score` (probability of a
    positive label).
    A bad row is an error: a score must not be silently missing.

    Args:
        scorer: The model.
        inputs: Raw files of the format the model was trained from.
        out: Parquet file to write, atomically.
        labelled: Whether the files hold the label column.

    Returns:
        Rows scored.

    Raises:
        DataError: An input is malformed, or `out` cannot be written.
    """
    if out.is_dir():
        raise DataError(f"{out}: a folder; name the Parquet file to write")
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
                    _stage(scorer, path, staged, labelled)
                    for rows in _scored(scorer, _text(path), staged):
                        writer.write_batch(rows)
                        num_rows += rows.num_rows
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    return num_rows


class RunScorer:
    """A run's encoder and model as one.

    Args:
        run: Holds the encoding, the source's layout and the model.
        checkpoint: "best", "last" or a step.
        device: Where to compute.
    """

    def __init__(self, run: Run, checkpoint: str, device: torch.device) -> None:
        use(run.folder, device)
        self.schema = run.manifest.schema
        self.source = run.recipe.data.source
        self._encoder = Encoder.load(run.folder, self.schema, run.manifest.encoding)
        self._model = run.load_model(checkpoint).to(device)
        self._batch_size = run.recipe.train.eval_batch_size
        self._device = device

    def scores(self, staged: pa.RecordBatch) -> NDArray[np.float32]:
        """See `Scorer`."""
        encoded = Rows([self._encoder.encode(staged)], self.schema)
        pieces = scores(self._model, encoded, self._batch_size, self._device)
        logits = torch.cat([logits for logits, _ in pieces]).numpy()
        return logistic(logits.astype(np.float64)).astype(np.float32)


class ModelScorer:
    """An exported model.

    Args:
        model: Scores in its own precision, calibrated.
    """

    def __init__(self, model: ExportedModel) -> None:
        self.schema = model.manifest.schema
        self.source = model.source
        self._model = model

    def scores(self, staged: pa.RecordBatch) -> NDArray[np.float32]:
        """See `Scorer`."""
        rows = self._model.encode_staged(staged)
        return np.concatenate([self._model.predict(batch) for batch in rows.batches(MODEL_ROWS)])


def _scored(scorer: Scorer, name: str, staged: Path) -> Iterator[pa.RecordBatch]:
    """A staged file's scores, as SCHEMA says, in pieces."""
    first_row = 0
    for batch in pq.ParquetFile(staged).iter_batches(ROWS_A_CHUNK):
        probabilities = scorer.scores(batch)
        rows = np.arange(first_row, first_row + len(probabilities))
        names = pa.array([name] * len(rows))
        yield pa.record_batch([names, rows, probabilities], schema=SCHEMA)
        first_row += len(rows)


def _text(path: Path) -> str:
    """A path as text; bytes of it that are not UTF-8 are written as \\x and two digits."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _stage(scorer: Scorer, path: Path, out: Path, labelled: bool) -> None:
    source, schema = scorer.source, scorer.schema
    remedy = "correct the row"
    if labelled:
        remedy += "; if the file has no labels, pass --unlabelled"
    try:
        stage_file(path, source, schema, out, remedy=remedy, labelled=labelled)
    except DataError as problem:
        if labelled and f"lacks column {schema.label.column!r}" in str(problem):
            raise DataError(f"{problem}, or pass --unlabelled") from problem
        raise
