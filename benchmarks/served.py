"""Servers under test, each a process of its own: ours, and the peers of benchmarks/peers."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
START_S = 180.0


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        url: http://127.0.0.1:PORT.
        model: What requests call it.
        process: Its first process.
        is_ours: Whether it is no peer.
    """

    url: str
    model: str
    process: subprocess.Popen[bytes]
    is_ours: bool = False

    def get(self, path: str) -> Any:
        """A JSON body."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Any = None) -> Any:
        """Ask with a JSON body; its JSON answer, or None where it is empty."""
        content = json.dumps({} if body is None else body).encode()
        request = urllib.request.Request(self.url + path, content, method="POST")
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def memory_mib(self) -> float:
        """Proportional set size of the server and all its descendants."""
        return sum(_pss_kib(pid) for pid in descendants(self.process.pid)) / 1024


@contextmanager
def ours(models: Path, model: str, port: int, *flags: str) -> Iterator[Served]:
    """`fastdlrm serve`.

    Args:
        models: Repository or exported model.
        model: Its name.
        port: Of HTTP.
        flags: More of the command line.
    """
    command = [sys.executable, "-m", "fastdlrm", "serve", str(models), "--port", str(port)]
    command += ["--set", "grpc.enabled=false", *flags]
    with running(command, f"http://127.0.0.1:{port}", model, is_ours=True) as served:
        yield served


@contextmanager
def fastapi(run: Path, port: int, threads: int = 0) -> Iterator[Served]:
    """The plain FastAPI server of a run."""
    command = [sys.executable, str(PEERS / "fastapi_server.py"), str(run)]
    command += ["--port", str(port), "--threads", str(threads)]
    with running(command, f"http://127.0.0.1:{port}", "ctr") as served:
        yield served


@contextmanager
def mlserver(run: Path, folder: Path, port: int, workers: int) -> Iterator[Served]:
    """MLServer over the same plain model; MLSERVER names its command."""
    command = [sys.executable, str(PEERS / "mlserver_runtime.py"), str(run), str(folder)]
    subprocess.run([*command, "--port", str(port), "--workers", str(workers)], check=True)
    program = os.environ.get("MLSERVER", "mlserver")
    with running([program, "start", str(folder)], f"http://127.0.0.1:{port}", "ctr") as served:
        yield served


@contextmanager
def running(
    command: Sequence[str], url: str, model: str, *, is_ours: bool = False
) -> Iterator[Served]:
    """A server from ready to gone."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    served = Served(url, model, process, is_ours)
    try:
        _wait(served)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            waiting += map(int, task.read_text().split())
    return found


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _wait(served: Served) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if served.process.poll() is not None:
            raise SystemExit(f"the server ended with {served.process.returncode}")
        try:
            path = f"/v2/models/{served.model}/ready"
            urllib.request.urlopen(served.url + path, timeout=60).close()  # MLServer's has no body
        except urllib.error.HTTPError as problem:
            if problem.code == 404:  # a peer without the route
                return
        except OSError:
            pass
        else:
            return
        time.sleep(0.1)
    raise SystemExit(f"{served.url}: not ready after {START_S:g} s")
