"""Starts the engines of a server, with its config."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.exported import ExportedManifest
from fastdlrm.contracts.manifest import read_manifest
from fastdlrm.contracts.signature import InputSpec, Signature
from fastdlrm.errors import ExportError
from fastdlrm.serve.config import ServeConfig
from fastdlrm.serve.engine import Engine
from fastdlrm.serve.observer import Observer
from fastdlrm.serve.options import EngineOptions
from fastdlrm.serve.query import Query, Scores
from fastdlrm.serve.served import EngineState
from fastdlrm.serve.workers import Nursery

LOADER = "fastdlrm.serve.exported:load_exported"


class Served:
    """The engines of a version, and what its model's requests must look like.

    Args:
        engine: Takes the queries that are not offloaded.
        signature: Of the model.
        offload: Takes queries of `min_rows` samples and more; None: `engine` takes all.
        min_rows: See there.
    """

    def __init__(
        self,
        engine: Engine,
        signature: Signature,
        offload: Engine | None = None,
        min_rows: int = 0,
    ) -> None:
        self.inputs: Sequence[InputSpec] = signature.inputs
        self.examples: Sequence[Mapping[str, Any]] = engine.examples
        self.num_rows = signature.num_rows
        self._engine = engine
        self._offload = offload
        self._min_rows = min_rows
        self._engines = [engine] if offload is None else [engine, offload]

    async def submit(self, query: Query) -> Scores:
        """Score a query, on the engine for queries of its size."""
        if self._offload is not None and query.num_rows >= self._min_rows:
            return await self._offload.submit(query)
        return await self._engine.submit(query)

    async def apply(self, path: Path) -> int:
        """Apply a delta; an engine that has it from an attempt before keeps it."""
        sequence = min(engine.sequence for engine in self._engines)
        for engine in self._engines:
            if engine.sequence == sequence:
                await engine.apply(path)
        return min(engine.sequence for engine in self._engines)

    def state(self) -> EngineState:
        """How it is now."""
        found = [engine.statistics() for engine in self._engines]
        ages = [age for engine in self._engines if (age := engine.staleness_s) is not None]
        return EngineState(
            num_workers=sum(each.num_workers for each in found),
            num_restarts=sum(each.num_restarts for each in found),
            queue_rows=sum(each.queue_rows for each in found),
            sequence=min(engine.sequence for engine in self._engines),
            staleness_s=max(ages, default=None),
        )

    async def drain(self, timeout_s: float) -> bool:
        """Take no more queries and answer those there are; whether all were in time."""
        return all(await asyncio.gather(*(each.drain(timeout_s) for each in self._engines)))

    async def stop(self) -> None:
        """Free all it holds."""
        await asyncio.gather(*(each.stop() for each in self._engines))


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
        self._offload = config.offload
        self._large = msgspec.structs.replace(
            self._options,
            num_workers=config.offload.count,
            max_batch_rows=config.offload.max_batch_rows,
            pin=False,  # the cores are the other workers'
            device=config.offload.device,
            program=config.offload.program,
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
        signature = Signature(manifest.schema)
        engine = await Engine.start(folder, name, version, self._options, self._nursery, observer)
        if not self._offload.min_rows:
            return Served(engine, signature)
        try:
            offload = await Engine.start(
                folder, name, version, self._large, self._nursery, observer
            )
        except BaseException:
            await engine.stop()
            raise
        return Served(engine, signature, offload, self._offload.min_rows)

    def close(self) -> None:
        """End what starts workers."""
        self._nursery.stop()
