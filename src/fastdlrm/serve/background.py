"""Work beside the answering of requests that must not end, nor fail unseen.

Invariant: work that fails is reported, counted and begun again; only `stop` ends it.
"""

import asyncio
import traceback
from collections.abc import Awaitable, Callable

from fastdlrm.serve.log import EventLog
from fastdlrm.serve.metrics import Metrics

AGAIN_S = 1.0
"""Pause before failed work begins again."""


class Background:
    """Keeps work going.

    Args:
        log: Where failures are written.
        metrics: Where they are counted.
    """

    def __init__(self, log: EventLog, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin to do work.

        Args:
            name: What reports call it.
            work: Never ends but by a failure, after which it is called again.
        """
        self._metrics.task_failures.labels(name)  # 0 from the start
        self._tasks[name] = asyncio.create_task(self._keep(name, work))

    def stop(self, name: str) -> None:
        """End work, where it was begun."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as problem:  # noqa: BLE001 the last border: nobody awaits this task
                self._metrics.task_failures.labels(name).value += 1
                trace = "".join(traceback.format_exception(problem))
                self._log(
                    "task_failed", level="error", task=name, problem=repr(problem), trace=trace
                )
            await asyncio.sleep(AGAIN_S)
