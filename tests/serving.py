"""A server to test the front with: real sockets and routes, scores that are worked out by hand.

`FormulaEngine` scores a row of the columns a and b with 1 / (1 + exp(-(a + 2 b))), in this process;
it can be told to wait or to fail, which workers only do when something is wrong.
"""

import asyncio
import contextlib
import http.client
import io
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from fastdlrm.contracts.delta import read_delta
from fastdlrm.contracts.signature import InputSpec
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import ExportError, RequestError
from fastdlrm.serve.config import Grpc, Http, ServeConfig, Shutdown
from fastdlrm.serve.log import EventLog
from fastdlrm.serve.query import Query, Scores
from fastdlrm.serve.served import EngineState, Observer
from fastdlrm.serve.server import Server

MODEL = "shop"


class FormulaEngine:
    """Scores by a formula.

    Attributes:
        delay_s: How long a query takes.
        problem: What a query fails with; None: nothing.
        delta_problem: What a delta fails with; None: nothing.
        num_cancelled: Queries that were cancelled while they waited.
        stopped: Whether it was stopped.
    """

    inputs = tuple(InputSpec("columns", name, "FP64", (-1,), ("FP64", "INT64")) for name in "ab")
    examples = ({"a": 1, "b": 0.5}, {"a": -1, "b": 0.25}, {"a": 0, "b": None})

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer
        self.delay_s = 0.0
        self.problem: Exception | None = None
        self.delta_problem: Exception | None = None
        self.num_cancelled = 0
        self.num_waiting = 0
        self.stopped = False
        self.sequence = 0

    def num_rows(self, inputs: Mapping[str, WireTensor]) -> int:
        if set(inputs) != {"a", "b"}:
            raise RequestError(f"inputs are {', '.join(inputs)}; a and b are needed")
        return max(tensor.num_elements for tensor in inputs.values())

    async def submit(self, query: Query) -> Scores:
        self.num_waiting += 1
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_waiting -= 1
        if self.problem is not None:
            raise self.problem
        if self._observer is not None:
            self._observer.flushed("idle", query.num_rows, query.num_rows / 8)
            self._observer.computed(query.num_rows, 2000, 3000)
        a, b = (tensor.values().astype(np.float64) for tensor in query.payload.tensors)
        scores = np.broadcast_to(1 / (1 + np.exp(-(a + 2 * np.nan_to_num(b)))), query.num_rows)
        return Scores(
            scores=scores.astype(np.float32), queue_ns=1000, encode_ns=2000, compute_ns=3000
        )

    async def apply(self, path: Path) -> int:
        if self.delta_problem is not None:
            raise self.delta_problem
        delta = read_delta(path)
        if delta.sequence != self.sequence + 1:
            raise ExportError(f"delta {delta.sequence} after {self.sequence}")
        self.sequence = delta.sequence
        return self.sequence

    def state(self) -> EngineState:
        return EngineState(
            num_workers=1, num_restarts=0, queue_rows=self.num_waiting, sequence=self.sequence
        )

    async def drain(self, timeout_s: float) -> bool:
        ended_s = asyncio.get_running_loop().time() + timeout_s
        while self.num_waiting and asyncio.get_running_loop().time() < ended_s:
            await asyncio.sleep(0.001)
        return not self.num_waiting

    async def stop(self) -> None:
        self.stopped = True


class Running:
    """A server that runs in a thread.

    Attributes:
        engines: Its engines, by name and version.
        refused: Versions that cannot be started, and why.
        log: Its log's lines so far, decoded.
    """

    def __init__(self, root: Path, config: ServeConfig, token: bytes | None) -> None:
        self.engines: dict[tuple[str, str], FormulaEngine] = {}
        self.refused: dict[str, Exception] = {}
        self._log = io.StringIO()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.server = Server(root, config, self._start, token=token, log=EventLog(self._log))
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    @property
    def engine(self) -> FormulaEngine:
        return self.engines[MODEL, "1"]

    @property
    def port(self) -> int:
        return self.server.http_port

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded body of an answer to JSON."""
        text = None if body is None else json.dumps(body)
        status, _, answer = self.ask(method, path, text, headers)
        return status, json.loads(answer)

    def launch(self) -> None:
        self._thread.start()

    def start(self) -> None:
        self.launch()
        while self.server.state == "starting" and self._thread.is_alive():
            self._thread.join(0.01)
        if self.server.state != "ready":
            self._thread.join(30)
        if self._problem is not None:
            raise self._problem

    def end(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.server.end)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self._loop = runner.get_loop()
                runner.run(self.server.run())
        except BaseException as problem:  # noqa: BLE001 raised again by `start`
            self._problem = problem

    async def _start(
        self, folder: Path, name: str, version: str, observer: Observer
    ) -> FormulaEngine:
        if version in self.refused:
            raise self.refused[version]
        engine = self.engines[name, version] = FormulaEngine(observer)
        return engine


def add_version(root: Path, version: int, name: str = MODEL) -> None:
    """A version as the repository sees it: a folder with a manifest."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"name": name}))


def free_ports(**sections: Any) -> ServeConfig:
    """A config with free ports, and other sections as given."""
    http_section = sections.pop("http", Http(port=0))
    return ServeConfig(http=http_section, grpc=sections.pop("grpc", Grpc(port=0)), **sections)


@contextlib.contextmanager
def running(
    root: Path, config: ServeConfig | None = None, token: bytes | None = None
) -> Iterator[Running]:
    """A server of the repository `root`; version 1 of `MODEL` is added where it is empty."""
    if not any(root.iterdir()):
        add_version(root, 1)
    server = Running(root, config or free_ports(), token)
    server.start()
    try:
        yield server
    finally:
        server.end()


def main() -> None:
    """Serve the repository named by the first argument; queries take the second's seconds."""

    async def start(folder: Path, name: str, version: str, observer: Observer) -> FormulaEngine:
        engine = FormulaEngine(observer)
        engine.delay_s = float(sys.argv[2])
        return engine

    config = free_ports(shutdown=Shutdown(grace_s=float(sys.argv[3])))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Server(Path(sys.argv[1]), config, start).run())


if __name__ == "__main__":
    main()
