"""A server as users start it: `fastdlrm serve` in a process of its own, over an exported model."""

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from fastdlrm.contracts.exported import SCORE
from tests.builders import invoke, tiny_dataset

MODEL = "ctr"
START_S = 120.0
"""Longest that a server may take to be ready, on a machine where other tests run."""


PATIENT = ("--set", "limits.default_timeout_ms=30000")
"""A loaded machine may take more than the second that a request has."""


class Answer(NamedTuple):
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Exported(NamedTuple):
    """A run and the repository its model is exported to."""

    run: Path
    models: Path
    log: Path

    def golden(self) -> tuple[dict[str, list[str]], np.ndarray]:
        """Raw columns as texts (empty: missing) and the scores that the export states."""
        return golden_rows(self.models / MODEL / "1")


def golden_rows(folder: Path) -> tuple[dict[str, list[str]], np.ndarray]:
    """Raw columns as texts (empty: missing) and scores of an exported model's golden rows."""
    with pa.memory_map(str(folder / "golden.arrow")) as source:
        rows = ipc.open_file(source).read_all()
    scores = rows.column(SCORE).to_numpy()
    columns = {
        name: [value or "" for value in rows.column(name).to_pylist()]
        for name in rows.column_names
        if name != SCORE
    }
    return columns, scores


def tiny_export(folder: Path) -> Exported:
    """A generated log, a model trained on it for a few seconds, exported as version 1."""
    tiny_dataset(folder)
    run, models = folder / "run", folder / "models"
    invoke("train", "--config", "tiny", "--data", folder / "data", "--out", run)
    invoke("export", "--run", run, "--data", folder / "data", "--out", models / MODEL / "1")
    return Exported(run, models, folder / "log")


class ServerProcess:
    """A running server.

    Args:
        models: What it serves.
        log: File that its stderr is written to.
        flags: Further arguments of the command.
        env: Further environment variables.
        ca: Certificate to trust, where the server speaks TLS.

    Attributes:
        http_port: Of HTTP.
        grpc_port: Of gRPC.
        process: The command's process.
    """

    def __init__(
        self,
        models: Path,
        log: Path,
        flags: Sequence[object] = (),
        env: Mapping[str, str] | None = None,
        ca: Path | None = None,
    ) -> None:
        self.log = log
        self.tls = None if ca is None else ssl.create_default_context(cafile=str(ca))
        command = [sys.executable, "-m", "fastdlrm", "serve", str(models)]
        command += ["--port", "0", "--grpc-port", "0", *PATIENT, *map(str, flags)]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env={**os.environ, **(env or {})}
            )
        try:
            started = self.event("started")
            self.http_port: int = started["http_port"]
            self.grpc_port: int = started["grpc_port"]
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def url(self) -> str:
        """Where it answers HTTP."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.http_port}"

    def events(self) -> list[dict[str, Any]]:
        """Its log so far."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"time"')]

    def event(self, name: str, *, count: int = 1, within_s: float = START_S) -> dict[str, Any]:
        """The `count`-th event of a name; waits for it, fails where the server ends before."""
        until = time.monotonic() + within_s
        while True:
            is_over = self.process.poll() is not None or time.monotonic() > until
            found = [event for event in self.events() if event["event"] == name]
            if len(found) >= count:
                return found[count - 1]
            assert not is_over, f"no event {name!r}:\n{self.log.read_text(errors='replace')}"
            time.sleep(0.02)

    def connection(self, timeout_s: float = 30.0) -> http.client.HTTPConnection:
        """A connection to its HTTP port."""
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout_s)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.http_port, timeout=timeout_s, context=self.tls
        )

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """Ask over HTTP; a body that is no bytes is sent as JSON."""
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        used = connection or self.connection()
        try:
            used.request(method, path, sent, dict(headers or {}))
            found = used.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, names, found.read())
        finally:
            if connection is None:
                used.close()

    def infer(self, body: Any, model: str = MODEL, **more: Any) -> Answer:
        """Ask for scores by the Open Inference Protocol."""
        return self.ask("POST", f"/v2/models/{model}/infer", body, **more)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in self.ask("GET", "/metrics").body.decode().splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(text in series for text in wanted):
                total += float(value)
        return total

    def is_well(self, columns: Mapping[str, list[str]], scores: np.ndarray) -> bool:
        """Whether it answers rows with these very scores."""
        answer = self.infer(columns_body(columns))
        assert answer.status == 200, answer.body
        return np.array_equal(scores_of(answer), scores)

    def stop(self, number: int = signal.SIGTERM, within_s: float = 60.0) -> int:
        """Send a signal and wait for the end: the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within_s)


@contextlib.contextmanager
def served(
    models: Path,
    log: Path,
    *flags: object,
    env: Mapping[str, str] | None = None,
    ca: Path | None = None,
    wait: bool = True,
) -> Iterator[ServerProcess]:
    """A server that is ready, stopped at the end; it must end by itself with exit code 0."""
    server = ServerProcess(models, log, flags, env, ca)
    try:
        if wait:
            server.event("ready")
        yield server
        if server.process.poll() is None:
            assert server.stop() == 0, log.read_text(errors="replace")
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def columns_body(columns: Mapping[str, Sequence[str]], **parameters: Any) -> dict[str, Any]:
    """A request of the columns form, as JSON: texts as in the log."""
    inputs = [
        {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
        for name, texts in columns.items()
    ]
    return {"inputs": inputs, **({"parameters": parameters} if parameters else {})}


def rows_of(columns: Mapping[str, list[str]], start: int, stop: int) -> dict[str, list[str]]:
    """Some rows of columns."""
    return {name: values[start:stop] for name, values in columns.items()}


def scores_of(answer: Answer) -> np.ndarray:
    """The scores of an answer in JSON, as float32."""
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    return np.array(outputs["score"]["data"], np.float32)


def descendants(pid: int) -> dict[int, int]:
    """All processes below a process: pid to parent's pid, in the order of their start."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found: dict[int, int] = {}
    grew = True
    while grew:
        more = {p: q for p, q in parents.items() if p not in found and (q == pid or q in found)}
        grew = bool(more)
        found.update(more)
    return dict(sorted(found.items()))


def workers_of(server: ServerProcess) -> list[int]:
    """Process ids of its workers: the children of the process that it forks them from."""
    top = server.process.pid
    return [pid for pid, parent in descendants(top).items() if parent != top]


class Traffic:
    """Requests that come without a pause, from threads that keep their connections.

    Args:
        server: Who is asked.
        columns: Rows that are scored again and again.
        num_threads: How many ask at once.

    Attributes:
        answers: Every answer so far, in the order they came.
        broken: What went wrong with a connection, a text each.
    """

    def __init__(
        self, server: ServerProcess, columns: Mapping[str, list[str]], num_threads: int = 4
    ) -> None:
        self.answers: list[Answer] = []
        self.broken: list[str] = []
        self._server = server
        self._body = json.dumps(columns_body(columns)).encode()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_threads)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait(self, more: int, within_s: float = 60.0) -> None:
        """Until so many more answers came."""
        wanted = len(self.answers) + more
        until = time.monotonic() + within_s
        while len(self.answers) < wanted and not self.broken:
            assert time.monotonic() < until, f"{len(self.answers)} of {wanted} answers"
            time.sleep(0.01)

    def _ask(self) -> None:
        connection = self._server.connection()
        try:
            while not self._is_over.is_set():
                answer = self._server.infer(self._body, connection=connection)
                self.answers.append(answer)
        except (OSError, http.client.HTTPException) as problem:
            self.broken.append(repr(problem))
        finally:
            connection.close()
