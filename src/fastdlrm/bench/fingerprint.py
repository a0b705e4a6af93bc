"""The machine and the software that a benchmark ran on, its memory's bandwidth measured."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastdlrm import __version__
from fastdlrm.bench.host import probe
from fastdlrm.contracts.host import Cache, Fact, Fingerprint
from fastdlrm.parallel.measure import copy_gb_s

CPUS = Path("/sys/devices/system/cpu")
PACKAGES = ("torch", "numpy", "numba", "triton")


def fingerprint(device: torch.device, load_average: float) -> Fingerprint:
    """Look at this machine and copy memory for a moment.

    Args:
        device: That was measured, besides the CPU.
        load_average: Before.
    """
    devices = {torch.device("cpu"), device}
    return Fingerprint(
        host=probe(),
        caches=caches(),
        smt=smt(),
        governor=governor(),
        copy_gb_s={found.type: round(copy_gb_s(found), 1) for found in devices},
        num_threads=torch.get_num_threads(),
        load_average=load_average,
        versions={"python": platform.python_version(), "fastdlrm": __version__, **_versions()},
    )


def caches(root: Path = CPUS) -> tuple[Cache, ...]:
    """The first core's, from the nearest on.

    Args:
        root: Where the system describes its cores.
    """
    found = []
    for folder in sorted((root / "cpu0" / "cache").glob("index*")):
        size, shared = _text(folder / "size"), _text(folder / "shared_cpu_list")
        if size is None or shared is None or not size.endswith("K"):
            continue
        found.append(
            Cache(
                level=int(_text(folder / "level") or 0),
                kind=_text(folder / "type") or "",
                size_bytes=int(size[:-1]) * 1024,
                num_sharing=_listed(shared),
            )
        )
    return tuple(found)


def smt(root: Path = CPUS) -> Fact:
    """Whether cores run several threads each."""
    text = _text(root / "smt" / "active")
    if text is None:
        return Fact(reason=f"unknown: no {root / 'smt' / 'active'}")
    return Fact(value=text == "1")


def governor(root: Path = CPUS) -> Fact:
    """What sets the first core's frequency."""
    path = root / "cpu0" / "cpufreq" / "scaling_governor"
    text = _text(path)
    if text is None:
        return Fact(reason=f"unknown: no {path}; a virtual machine does not show it")
    return Fact(value=text)


def _text(path: Path) -> str | None:
    return path.read_text().strip() if path.is_file() else None


def _listed(cores: str) -> int:
    """How many cores a list such as 0-3,8 names."""
    count = 0
    for part in cores.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
