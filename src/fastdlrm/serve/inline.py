"""An engine in this process: one exported model, one thread, no batches."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.payload import unpack
from fastdlrm.contracts.signature import InputSpec, Signature
from fastdlrm.errors import DeadlineExceeded
from fastdlrm.export.model import ExportedModel
from fastdlrm.serve.query import Query, Scores
from fastdlrm.serve.served import EngineState, Observer

NUM_EXAMPLES = 8


class InlineEngine:
    """Scores queries one after the other."""

    def __init__(self, model: ExportedModel) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1)
        self._queue_rows = 0
        rows = model.warmup_rows()
        signature = Signature(model.manifest.schema)
        self.inputs: Sequence[InputSpec] = signature.inputs
        self.num_rows = signature.num_rows
        self.examples: Sequence[Mapping[str, Any]] = rows.slice(0, NUM_EXAMPLES).to_pylist()

    async def submit(self, query: Query) -> Scores:
        """Score a query."""
        started_ns = time.perf_counter_ns()
        self._queue_rows += query.num_rows
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._score, query, started_ns)
        finally:
            self._queue_rows -= query.num_rows

    def _score(self, query: Query, started_ns: int) -> Scores:
        begun_ns = time.perf_counter_ns()
        if time.monotonic() >= query.deadline_s:
            waited_ms = (begun_ns - started_ns) / 1e6
            raise DeadlineExceeded(
                f"the deadline passed while {query.num_rows} rows waited {waited_ms:.1f} ms; give "
                "them more time"
            )
        inputs = unpack(memoryview(query.payload.to_bytes()))
        encoder = self._model.encoder
        batch = encoder.join([encoder.encode(inputs, 0, query.num_rows)])
        encoded_ns = time.perf_counter_ns()
        scores: NDArray[np.float32] = self._model.predict(batch)
        return Scores(
            scores=scores,
            queue_ns=begun_ns - started_ns,
            encode_ns=encoded_ns - begun_ns,
            compute_ns=time.perf_counter_ns() - encoded_ns,
        )

    def state(self) -> EngineState:
        """How it is."""
        return EngineState(num_workers=1, num_restarts=0, queue_rows=self._queue_rows)

    async def drain(self, timeout_s: float) -> bool:
        """Answer all there is; whether it was in time."""
        ended_s = time.monotonic() + timeout_s
        while self._queue_rows and time.monotonic() < ended_s:
            await asyncio.sleep(0.005)
        return not self._queue_rows

    async def stop(self) -> None:
        """Free the thread."""
        self._thread.shutdown(wait=False)


class InlineStarter:
    """Starts such engines."""

    async def __call__(
        self, folder: Path, name: str, version: str, observer: Observer
    ) -> InlineEngine:
        """Load a model and check it."""
        return InlineEngine(await asyncio.to_thread(ExportedModel.load, folder))

    def close(self) -> None:
        """Nothing is shared."""
