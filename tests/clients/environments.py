"""Virtual environments of clients that are none of ours: one a client, kept between runs.

They lie in the folder that FASTDLRM_CLIENT_VENVS names, else in the user's cache, under a name that
tells their pins and the interpreter. Where pip cannot reach an index the test is skipped. A client
that needs torch takes ours, and has all else that it needs beside it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
NO_INDEX = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Connection refused",
    "Network is unreachable",
    "from versions: none",
)


def client_python(name: str, *, beside_ours: bool = False) -> Path:
    """The interpreter that has what clients/NAME.txt pins; made where it is not there.

    With `beside_ours` it finds our packages too, after its own.
    """
    pins = HERE / f"{name}.txt"
    ours = sysconfig.get_path("purelib") if beside_ours else ""
    told = pins.read_bytes() + sys.version.encode() + ours.encode()
    tag = hashlib.sha256(told).hexdigest()[:12]
    place = os.environ.get("FASTDLRM_CLIENT_VENVS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(place) if place else cache / "fastdlrm" / "client-venvs") / f"{name}-{tag}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            _install(folder, pins, ours)
            (folder / "complete").touch()
    return folder / "bin" / "python"


def _install(folder: Path, pins: Path, ours: str) -> None:
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", pins]
    if ours:
        command.append("--no-deps")  # torch is ours; the pins are all else
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "ours.pth").write_text(f"{ours}\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and any(text in done.stderr for text in NO_INDEX):
        pytest.skip(f"pip reaches no index that has the pins of {pins.name}: {folder.name}")
    assert done.returncode == 0, done.stderr


def run_client(python: Path, program: str, task: dict[str, Any], timeout_s: float = 120) -> Any:
    """Run clients/PROGRAM: a task as JSON on stdin, what it found as JSON on stdout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, HERE / program],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env=environment,
    )
    assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)
