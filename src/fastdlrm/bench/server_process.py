"""`fastdlrm serve` as a process beside a benchmark, on a free port; it never outlives it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastdlrm.errors import ServeError
from fastdlrm.serve.nursery import end_with_parent

START_S = 600.0
"""For a model to be loaded, checked and warm."""
STOP_S = 30.0
POLL_S = 0.05
LAST_LINES = 3


@contextmanager
def server_process(models: Path, log: Path, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Start a server, wait until it is ready, and end it.

    Args:
        models: Repository, or one exported model.
        log: File to write the server's log to.
        overrides: Of its config, "a.b=v" each.

    Yields:
        Its URL.

    Raises:
        ServeError: It ended, or was not ready in time.
    """
    command = [sys.executable, "-m", "fastdlrm", "serve", str(models), "--port", "0"]
    for override in ("grpc.enabled=false", *overrides):
        command += ["--set", override]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends the server
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
    try:
        yield f"http://127.0.0.1:{_ready_port(process, log)}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its workers end with it
            process.wait()


def _ready_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """The HTTP port, once the server is ready."""
    until = time.monotonic() + START_S
    while True:
        has_ended = process.poll() is not None
        events = {event["event"]: event for event in _events(log)}
        if "ready" in events:
            return int(events["started"]["http_port"])
        if has_ended or time.monotonic() > until:
            what = (
                f"ended with {process.returncode}" if has_ended else f"not ready in {START_S:g} s"
            )
            last = " | ".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise ServeError(f"the server under test: {what}; its log ends: {last}")
        time.sleep(POLL_S)


def _events(log: Path) -> list[dict[str, Any]]:
    """What it said so far; a line that is not whole yet is left out."""
    whole = log.read_text(errors="replace").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines() if line.startswith('{"time"')]
