"""A server's life: listen, load, be ready, leave, drain, end.

The HTTP port answers from the start, so liveness is told apart from readiness: a process that loads
is alive and not ready. SIGTERM or SIGINT: not ready, grace for load balancers to see it, no new
connections, requests under way answered, engines drained, exit 0. A second one ends it at once.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import grpc.aio
import uvloop

from fastdlrm.config import to_tree
from fastdlrm.errors import ServeError
from fastdlrm.serve import grpc_service
from fastdlrm.serve.access import Access
from fastdlrm.serve.app import App
from fastdlrm.serve.backend import Backend
from fastdlrm.serve.background import Background
from fastdlrm.serve.config import ServeConfig
from fastdlrm.serve.grpc_service import GrpcService, make_server
from fastdlrm.serve.http import BodyBudget
from fastdlrm.serve.log import EventLog, LogBridge
from fastdlrm.serve.metrics import GaugeValues, Metrics
from fastdlrm.serve.protocol import Connection
from fastdlrm.serve.repository import Repository, StartEngine
from fastdlrm.serve.route_table import all_routes
from fastdlrm.serve.served import Engine, Observer
from fastdlrm.serve.status import Status, StatusReader
from fastdlrm.serve.transport import HttpServer, http_config, listen, tls_files
from fastdlrm.serve.watch import Watcher

TICK_S = 0.1
TICKS_A_SECOND = 10
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
GC_THRESHOLDS = (50_000, 50, 100)
"""Of Python's collector in this process: what a request makes is freed without it."""


class Server:
    """Serves a repository until it is told to end.

    Args:
        root: Model repository, or one exported model.
        config: How.
        start: Starts the engine of a version.
        token: Bearer token that requests must bring; None: none.
        log: Where events go.

    Attributes:
        state: starting, ready, leaving (not ready, still serving) or draining.
        http_port: Port that is listened at, once `run` does.
        grpc_port: As `http_port`; 0 where no gRPC is spoken.
    """

    def __init__(
        self,
        root: Path,
        config: ServeConfig,
        start: StartEngine,
        *,
        token: bytes | None = None,
        log: EventLog | None = None,
    ) -> None:
        self.state = "starting"
        self.http_port = 0
        self.grpc_port = 0
        self._config = config
        self._log = log or EventLog()
        self._metrics = Metrics()
        self._access = Access(token)
        self._repository = Repository(
            root,
            start,
            log=self._log,
            metrics=self._metrics,
            only=config.models,
            drain_s=config.shutdown.drain_s,
        )
        self._backend = Backend(self._repository, config.limits, self._metrics)
        self._reader = StatusReader(self._repository, self._metrics)
        self._app = App(
            all_routes(self._backend, self._repository, self._metrics, config, status=self._status),
            self._access,
            self._metrics,
            self._log,
            budget=BodyBudget(config.limits.max_bodies_bytes),
            access_share=config.log.access_share,
        )
        self._metrics.gauges = self._gauges
        self._background = Background(self._log, self._metrics)
        self._told_to_end = asyncio.Event()
        self._http: HttpServer | None = None
        self._grpc: grpc.aio.Server | None = None

    async def run(self) -> None:
        """Serve until a signal, or `end`.

        Raises:
            ConfigError: A port or a file of TLS cannot be used.
            ExportError: A model cannot be served.
            ServeError: The HTTP server ended by itself.
        """
        began = time.perf_counter()
        config = self._config
        self._warn_when_open()
        with self._signals(), self._library_log(), self._quiet_gc():
            self._http = HttpServer(http_config(self._app, config))
            listener = listen(config.http)
            self.http_port = listener.getsockname()[1]
            serving = asyncio.create_task(self._http.serve(sockets=[listener]))
            self._background.start("tick", self._tick)
            try:
                await self._start_grpc()
                self._log(
                    "started",
                    pid=os.getpid(),
                    host=config.http.host,
                    http_port=self.http_port,
                    grpc_port=self.grpc_port,
                    config=to_tree(config),
                )
                await self._start_models()
                self._watch()
                self._be_ready(time.perf_counter() - began)
                await self._until_told(serving)
                await self._leave()
            finally:
                self.state, self._backend.accepts = "draining", False
                self._background.stop("watch")
                await self._drain(serving)
                self._background.stop("tick")
                await self._repository.stop()
                self._log("stopped", uptime_s=round(time.time() - self._reader.started, 1))

    def end(self) -> None:
        """Begin to leave, as SIGTERM does."""
        self._told_to_end.set()

    async def _start_grpc(self) -> None:
        config = self._config
        if not config.grpc.enabled:
            return
        service = GrpcService(
            self._backend,
            allows=None if self._access.is_open else self._access.allows,
            answered=lambda method, status: self._metrics.answered("grpc", method, status),
        )
        self._grpc = make_server(service, max_message_bytes=config.limits.max_body_bytes)
        host = config.http.host
        address = f"[{host}]:{config.grpc.port}" if ":" in host else f"{host}:{config.grpc.port}"
        self.grpc_port = grpc_service.listen(self._grpc, address, tls_files(config.security))
        await self._grpc.start()

    async def _start_models(self) -> None:
        """Load all models, unless told to end before."""
        loading = asyncio.create_task(self._repository.start())
        ending = asyncio.create_task(self._told_to_end.wait())
        try:
            await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
        finally:
            for task in (loading, ending):
                task.cancel()
            await asyncio.gather(loading, ending, return_exceptions=True)

    def _watch(self) -> None:
        """Follow the repository from now on, if the config says so."""
        every_s = self._config.watch.every_s
        if every_s:
            watcher = Watcher(self._repository, self._log)
            self._background.start("watch", lambda: watcher.run(every_s))

    def _be_ready(self, took_s: float) -> None:
        gc.collect()
        gc.freeze()  # what is here by now stays
        if not self._told_to_end.is_set():
            self.state, self._backend.accepts = "ready", True
            models = [f"{v.name}/{v.number}" for v in self._repository.serving()]
            self._log("ready", models=models, seconds=round(took_s, 3))

    async def _until_told(self, serving: "asyncio.Task[None]") -> None:
        ending = asyncio.create_task(self._told_to_end.wait())
        await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if serving.done() and not self._told_to_end.is_set():
            serving.result()
            raise ServeError("the HTTP server ended by itself; the log says why")

    async def _leave(self) -> None:
        self.state, self._backend.accepts = "leaving", False
        grace_s = self._config.shutdown.grace_s
        self._log("leaving", grace_s=grace_s, in_flight=self._app.num_in_flight)
        await asyncio.sleep(grace_s)

    async def _drain(self, serving: "asyncio.Task[None]") -> None:
        """Accept no more, answer what is under way, cut off what takes too long."""
        if self._http is not None:
            self._http.should_exit = True
        self._log("draining", in_flight=self._app.num_in_flight)
        stopping = [serving]
        if self._grpc is not None:
            drain_s = self._config.shutdown.drain_s
            stopping.append(asyncio.create_task(self._grpc.stop(drain_s)))
        await asyncio.gather(*stopping)
        while self._app.num_in_flight:  # cut off: each still says so to its client
            await asyncio.sleep(0.01)

    async def _tick(self) -> None:
        """Count how late the loop is, end seconds, close connections that send nothing."""
        loop = asyncio.get_running_loop()
        lag = self._metrics.loop_lag.labels()
        ticks = 0
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            lag.observe(max(0.0, time.perf_counter() - before - TICK_S))
            ticks += 1
            if ticks % TICKS_A_SECOND == 0:
                engines = [v.state_of_engine() for v in self._repository.serving()]
                waiting = sum(engine.queue_rows for engine in engines if engine is not None)
                self._metrics.recent.tick(time.time(), waiting)
                if self._http is not None:
                    Connection.sweep(tuple(self._http.server_state.connections), loop.time())

    def _status(self, since: float) -> Status:
        return self._reader.read(state=self.state, in_flight=self._app.num_in_flight, since=since)

    def _gauges(self) -> GaugeValues:
        yield from self._reader.gauges()
        yield "fastdlrm_in_flight_requests", (), self._app.num_in_flight
        yield "fastdlrm_ready", (), float(self._backend.accepts)
        if self._http is not None:
            connections = len(self._http.server_state.connections)
            yield "fastdlrm_http_connections", (), connections

    def _warn_when_open(self) -> None:
        host = self._config.http.host
        if self._access.is_open and host not in LOCAL_HOSTS:
            self._log(
                "open_to_others",
                level="warning",
                host=host,
                message="anybody who reaches this address may ask; set security.token_file or "
                "security.token_env",
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        in_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if in_main else ()
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _quiet_gc(self) -> Iterator[None]:
        """Python's collector seldom runs, and its pauses are counted."""
        before = gc.get_threshold()
        gc.set_threshold(*GC_THRESHOLDS)
        self._metrics.watch_gc()
        try:
            yield
        finally:
            self._metrics.unwatch_gc()
            gc.set_threshold(*before)
            gc.unfreeze()

    def _on_signal(self, number: int) -> None:
        if self._told_to_end.is_set():
            self._log("ended_at_once", level="warning", signal=signal.Signals(number).name)
            os._exit(128 + number)
        self._log("signal", signal=signal.Signals(number).name)
        self._told_to_end.set()

    @contextlib.contextmanager
    def _library_log(self) -> Iterator[None]:
        bridge = LogBridge(self._log)
        loggers = [
            logging.getLogger(name) for name in ("uvicorn.error", "asyncio", "grpc", "fastdlrm")
        ]
        loggers[0].setLevel(logging.ERROR)  # it warns of whatever a client sends
        for logger in loggers:
            logger.addHandler(bridge)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(bridge)


class Starter(Protocol):
    """Starts engines, and ends what it started them with."""

    def __call__(
        self, folder: Path, name: str, version: str, observer: Observer
    ) -> Awaitable[Engine]:
        """As `StartEngine`."""
        ...

    def close(self) -> None:
        """Free what all engines share; they are stopped by then."""
        ...


def serve(
    root: Path, config: ServeConfig, make_starter: Callable[[], Starter], *, token: bytes | None
) -> None:
    """Serve until a signal; returns when all is answered and freed.

    Args:
        root: Model repository, or one exported model.
        config: How.
        make_starter: Makes what starts engines, within the event loop.
        token: Bearer token that requests must bring; None: none.

    Raises:
        FastDLRMError: As `Server.run`.
    """

    async def run() -> None:
        starter = make_starter()
        try:
            await Server(root, config, starter, token=token).run()
        finally:
            starter.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
