"""What the server asks of an engine: one version of a model, its workers and its queue."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fastdlrm.contracts.signature import InputSpec
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.serve.query import Query, Scores


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is."""

    num_workers: int
    """Workers that compute."""
    num_restarts: int
    """Workers that were replaced."""
    queue_rows: int
    """Samples that wait for a worker."""
    sequence: int = 0
    """Number of the last delta applied; 0: none."""
    staleness_s: float | None = None
    """Age of the newest embeddings; None: unknown."""


class Observer(Protocol):
    """Is told of an engine's batches."""

    def flushed(self, reason: str, rows: int, fill: float) -> None:
        """A batch left the queue: why, its samples, its share of the most a batch may hold."""
        ...

    def computed(self, rows: int, encode_ns: int, compute_ns: int) -> None:
        """A worker is done with a batch: its samples, and how long that took."""
        ...


class Engine(Protocol):
    """One version of a model, loaded, checked and warm."""

    @property
    def inputs(self) -> Sequence[InputSpec]:
        """The tensors that a request holds, of both its forms."""
        ...

    @property
    def examples(self) -> Sequence[Mapping[str, Any]]:
        """Some raw rows, a value a column; None is a missing value."""
        ...

    def num_rows(self, inputs: Mapping[str, WireTensor]) -> int:
        """Samples of a request, N.

        Raises:
            RequestError: A name, datatype or shape is wrong.
        """
        ...

    async def submit(self, query: Query) -> Scores:
        """Score a query; cancelling this drops it.

        Raises:
            RequestError: A value is wrong.
            Overloaded: It would not be answered in time.
            DeadlineExceeded: Its deadline passed while it waited.
            ServeError: The workers failed.
        """
        ...

    async def apply(self, path: Path) -> int:
        """Apply a delta; its sequence number.

        Raises:
            ExportError: It does not follow the last one, or does not fit; nothing has changed.
            ServeError: No worker could take it.
        """
        ...

    def state(self) -> EngineState:
        """How it is now."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Take no more queries and answer those there are; whether all were in time."""
        ...

    async def stop(self) -> None:
        """Free all it holds."""
        ...
