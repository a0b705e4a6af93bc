"""The exported model in a worker: a request's inputs to encoded rows, rows to scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.delta import read_delta
from fastdlrm.contracts.tensors import BYTES, WireTensor
from fastdlrm.errors import DataError, RequestError
from fastdlrm.export.model import ExportedModel
from fastdlrm.serve.messages import Task

NUM_EXAMPLES = 8


def load_exported(task: Task) -> "ServedExport":
    """Load what a worker serves."""
    return ServedExport(ExportedModel.load(Path(task.folder), device=task.device, check=task.check))


class ServedExport:
    """An exported model as a worker uses it."""

    def __init__(self, model: ExportedModel) -> None:
        self._model = model
        rows = model.warmup_rows().slice(0, NUM_EXAMPLES)
        self.examples: Sequence[Mapping[str, Any]] = rows.to_pylist()

    def warm(self, max_rows: int) -> Sequence[tuple[int, float]]:
        """Score batches of all sizes; rows and seconds of each."""
        self._model.warm(max_rows)
        rows, measured, size = self._model.warmup_rows(), [], 1
        while size <= max_rows:
            batch = self._model.encode(rows.take(pa.array(np.arange(size) % rows.num_rows)))
            started = perf_counter()
            self._model.predict(batch)
            measured.append((size, perf_counter() - started))
            size *= 4
        return measured

    def encode(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> pa.RecordBatch:
        """Rows of one request."""
        columns = {name: column(tensor, start, stop) for name, tensor in inputs.items()}
        return pa.RecordBatch.from_pydict(columns)

    def predict(self, parts: Sequence[pa.RecordBatch]) -> NDArray[np.float32]:
        """Scores of the rows of all parts."""
        (rows,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
        try:
            return self._model.predict_raw(rows)
        except DataError as problem:
            raise RequestError(str(problem)) from problem

    def apply(self, path: Path) -> tuple[int, float]:
        """Apply a delta."""
        delta = read_delta(path)
        self._model.apply(delta)
        return delta.sequence, delta.created_s


def column(tensor: WireTensor, start: int, stop: int) -> pa.Array:
    """Rows of a raw column, as texts."""
    if tensor.datatype == BYTES:
        texts = [text or None for text in tensor.texts()]
    else:
        values = tensor.values().ravel().tolist()
        texts = [None if value != value else str(value) for value in values]
    chosen = texts * (stop - start) if len(texts) == 1 else texts[start:stop]
    return pa.array(chosen, pa.string())
