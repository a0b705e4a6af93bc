"""Starts the engines of a server, with its config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdlrm.contracts.exported import ExportedManifest
from fastdlrm.contracts.manifest import read_manifest
from fastdlrm.contracts.signature import InputSpec, Signature
from fastdlrm.errors import ExportError
from fastdlrm.serve.config import ServeConfig
from fastdlrm.serve.engine import Engine
from fastdlrm.serve.observer import Observer
from fastdlrm.serve.options import EngineOptions
from fastdlrm.serve.served import EngineState
from fastdlrm.serve.workers import Nursery

LOADER = "fastdlrm.serve.exported:load_exported"


class Served:
    """An engine, and what its model's requests must look like.

    Args:
        engine: The engine.
        signature: Of its model.
    """

    def __init__(self, engine: Engine, signature: Signature) -> None:
        self.inputs: Sequence[InputSpec] = signature.inputs
        self.examples: Sequence[Mapping[str, Any]] = engine.examples
        self.num_rows = signature.num_rows
        self.submit = engine.submit
        self.apply = engine.apply
        self._engine = engine

    def state(self) -> EngineState:
        """How it is now."""
        found = self._engine.statistics()
        return EngineState(
            num_workers=found.num_workers,
            num_restarts=found.num_restarts,
            queue_rows=found.queue_rows,
            sequence=self._engine.sequence,
            staleness_s=self._engine.staleness_s,
        )

    async def drain(self, timeout_s: float) -> bool:
        """Take no more queries and answer those there are; whether all were in time."""
        return await self._engine.drain(timeout_s)

    async def stop(self) -> None:
        """Free all it holds."""
        await self._engine.stop()


class Starter:
    """Starts engines whose workers one nursery forks.

    Args:
        config: Of the server.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._nursery = Nursery()
        self._options = EngineOptions(
            loader=LOADER,
            num_workers=config.workers.count,
            max_batch_rows=config.batching.max_batch_rows,
            max_queue_delay_s=config.batching.max_queue_delay_ms * 1e-3,
            arena_bytes=config.batching.arena_bytes,
            start_timeout_s=config.workers.start_timeout_s,
            device=config.workers.device,
            program=config.workers.program,
        )

    async def __call__(self, folder: Path, name: str, version: str, observer: Observer) -> Served:
        """Load, check and warm an exported model.

        Args:
            folder: Where it lies.
            name: What requests call it.
            version: Its number.
            observer: Is told of its batches.

        Raises:
            ExportError: It cannot be served.
            ServeError: A worker died, or was not ready in time.
        """
        manifest = read_manifest(folder, ExportedManifest, ExportError)
        engine = await Engine.start(folder, name, version, self._options, self._nursery, observer)
        return Served(engine, Signature(manifest.schema))

    def close(self) -> None:
        """End what starts workers."""
        self._nursery.stop()
