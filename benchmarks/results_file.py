"""Where results go, and what they say of the machine and the code that made them."""

import json
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fastdlrm import __version__
from fastdlrm.contracts.processor import processor_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def gpu() -> dict[str, str]:
    """The GPU and its driver, where there is one."""
    if not torch.cuda.is_available():
        return {}
    driver = Path("/proc/driver/nvidia/version")
    words = driver.read_text().split() if driver.is_file() else []
    releases = [word for word in words if word.count(".") >= 1 and word[0].isdigit()]
    return {"gpu": torch.cuda.get_device_name(), "driver": releases[0] if releases else "unknown"}


def host() -> dict[str, Any]:
    """CPU and GPU model, cores, memory, versions and commit.

    The commit is what GIT_COMMIT says, where the code is a copy of a checkout, or the checkout's.
    """
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return {
        **gpu(),
        "cpu": processor_name() or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "fastdlrm": __version__,
        **{p: version(p) for p in ("torch", "numpy", "pyarrow", "duckdb", "numba")},
        "commit": os.environ.get("GIT_COMMIT", commit.stdout.strip()),
        "date": datetime.now(UTC).date().isoformat(),
    }


def load(name: str) -> dict[str, Any]:
    """One result file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def where(name: str) -> str:
    """Machine, date and commit of a result, as a sentence."""
    host = load(name)["host"]
    machine = host.get("gpu") or f"{host['cpu']}, {host['cores']} cores"
    return f"{machine}, {host['date']}, commit {host['commit']}."


def write(
    name: str,
    config: dict[str, Any],
    samples: list[dict[str, Any]],
    result: dict[str, Any] | None = None,
) -> Path:
    """Write `results/NAME.json`: raw samples, medians, what follows from them, host, config."""
    numbers = [k for k in samples[0] if all(isinstance(s[k], int | float) for s in samples)]
    median = {k: statistics.median(s[k] for s in samples) for k in numbers}
    path = RESULTS / f"{name}.json"
    content = {"config": config, "host": host(), "median": median, "samples": samples}
    if result is not None:
        content["result"] = result
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
