"""Commands on several ranks: by the session's processes, which are quick, or as a user starts them."""

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist

from fastdlrm.cli.main import main
from tests.builders import ROOT

LIMIT_S = 300


class Said(NamedTuple):
    """How a command ended on one rank."""

    code: int
    out: str
    err: str


def command(*arguments: str) -> Said:
    """On a rank of `Ranks`: run the command line as `python -m fastdlrm` does."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["fastdlrm", *arguments])
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        if dist.is_initialized():  # after an error, as nothing waits for the others
            dist.destroy_process_group()
    return Said(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def started(*arguments: object, log: Path) -> Iterator["subprocess.Popen[str]"]:
    """`python -m ARGUMENTS`, its stderr in a file; ended with the context."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def records(run: Path) -> list[dict[str, object]]:
    """A run's records; a line that is being written is left out."""
    path = run / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(run: Path) -> int:
    """Of a run's records; 0 where there are none."""
    return max((record["step"] for record in records(run)), default=0)


def wait_until(process: "subprocess.Popen[str]", is_so: Callable[[], bool]) -> None:
    """Look again and again, as long as a process runs."""
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert process.poll() is None, f"it has ended, exit code {process.returncode}"
        assert time.monotonic() < deadline, f"not so within {LIMIT_S} s"
        time.sleep(0.005)


def rank_processes(launcher: int) -> list[int]:
    """Process ids of the ranks that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [pid for pid in map(int, children) if b"fastdlrm" in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
