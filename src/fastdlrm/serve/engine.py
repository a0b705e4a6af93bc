"""What the server asks of an engine: one version of a model, its workers and its queue."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from fastdlrm.contracts.server_info import TensorMetadata
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.serve.query import Query, Scores


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is."""

    num_workers: int
    num_restarts: int
    queue_rows: int
    sequence: int
    staleness_s: float | None


class Engine(Protocol):
    """One version of a model."""

    inputs: Sequence[TensorMetadata]
    examples: Sequence[Mapping[str, Any]]

    def num_rows(self, inputs: Mapping[str, WireTensor]) -> int:
        """Check names, types and shapes."""
        ...

    async def submit(self, query: Query) -> Scores:
        """Score a query."""
        ...

    def state(self) -> EngineState:
        """How it is."""
        ...

    async def drain(self) -> None:
        """Answer all there is."""
        ...

    async def stop(self) -> None:
        """Free everything."""
        ...
