"""`fastdlrm doctor`: versions, machine, the kernels in use, and what is missing."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import msgspec
import typer

from fastdlrm import __version__
from fastdlrm.bench.host import probe
from fastdlrm.cli.options import Json
from fastdlrm.contracts.host import Fact, Gpu, Host
from fastdlrm.kernels.registry import Implementation, Matmul, implementations

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

PACKAGES = (
    "torch",
    "numpy",
    "pyarrow",
    "duckdb",
    "numba",
    "msgspec",
    "safetensors",
    "triton",
    "tensorboard",
    "plotly",
)


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Something optional that is not here."""

    name: str
    effect: str
    """What one does without."""
    remedy: str
    """What to do to have it."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All that `doctor` finds."""

    versions: dict[str, Fact]
    """By package, and "python"."""
    host: Host
    kernels: tuple[Implementation, ...]
    matmul: Matmul
    """How float32 matrices are multiplied on the CPU."""
    missing: tuple[Missing, ...]


def doctor(json_output: Json = False) -> None:
    """Say what is installed, what this machine has, which kernels run, and what is missing.

    fastdlrm doctor
    """
    from rich.console import Console

    diagnosis = diagnose()
    if json_output:
        typer.echo(msgspec.json.encode(diagnosis).decode())
    else:
        Console().print(render(diagnosis))


def diagnose() -> Diagnosis:
    """Look at the installation and the machine; what cannot be found out is said, not raised."""
    from fastdlrm.kernels.cpu.matmul import calibrate

    versions = {
        "fastdlrm": Fact(value=__version__),
        "python": Fact(value=platform.python_version()),
        **{name: _version(name) for name in PACKAGES},
    }
    host = probe()
    return Diagnosis(
        versions=versions,
        host=host,
        kernels=tuple(implementations()),
        matmul=calibrate(),
        missing=tuple(missing(versions, host)),
    )


def missing(versions: dict[str, Fact], host: Host) -> list[Missing]:
    """The optional parts that are not here."""
    found = []
    if host.no_gpu:
        found.append(Missing(name="GPU", effect="everything runs on the CPU", remedy=host.no_gpu))
    if versions["triton"].value is None:
        found.append(
            Missing(
                name="triton",
                effect="no kernel written in Triton can run; every operator has another",
                remedy="install a CUDA build of torch for Linux, which brings it",
            )
        )
    if versions["tensorboard"].value is None:
        found.append(
            Missing(
                name="tensorboard",
                effect="training records go to records.jsonl alone",
                remedy="pip install 'fastdlrm[tensorboard]'",
            )
        )
    if versions["plotly"].value is None:
        found.append(
            Missing(
                name="plotly",
                effect="`fastdlrm inspect --html` writes no page",
                remedy="pip install 'fastdlrm[report]'",
            )
        )
    return found


def render(diagnosis: Diagnosis) -> "Group":
    """The diagnosis as tables for a terminal."""
    from rich.console import Group

    parts = []
    versions = {name: _text(fact) for name, fact in diagnosis.versions.items()}
    for title, rows in (("Versions", versions), ("Machine", _host_rows(diagnosis.host))):
        table = _table(title, "", "")
        for row in rows.items():
            table.add_row(*row)
        parts.append(table)
    table = _table("Kernels", "operator", "device", "implementation", "why")
    for kernel in diagnosis.kernels:
        table.add_row(kernel.operator, kernel.device, kernel.name, kernel.reason)
    parts.append(table)
    parts.append(_matmul_table(diagnosis.matmul))
    if diagnosis.missing:
        table = _table("Missing (optional)", "what", "without it", "to have it")
        for part in diagnosis.missing:
            table.add_row(part.name, part.effect, part.remedy)
        parts.append(table)
    return Group(*parts)


def _matmul_table(matmul: Matmul) -> "Table":
    table = _table("float32 products on the CPU", "way", "GFLOP/s", "relative error", "why")
    for way, speed in matmul.gflop_s.items():
        error = f"{matmul.error[way]:.0e}" if way in matmul.error else ""
        table.add_row(way, f"{speed:,.0f}", error, matmul.reason if way == matmul.way else "")
    return table


def _host_rows(host: Host) -> dict[str, str]:
    rows = {
        "operating system": host.os,
        "processor": _text(host.cpu_model),
        "cores": _text(host.num_cores),
        "usable cores": _text(host.num_usable_cores),
        "core quota": _text(host.core_quota),
        **{name: _text(fact) for name, fact in host.instruction_sets.items()},
        "torch's CPU kernels": _text(host.torch_cpu_capability),
        "memory": _size(host.memory_bytes),
        "available memory": _size(host.available_memory_bytes),
        "memory limit": _size(host.memory_limit_bytes),
        "NVIDIA driver": _text(host.gpu_driver),
        "torch's CUDA": _text(host.cuda),
    }
    for index, gpu in enumerate(host.gpus):
        rows[f"GPU {index}"] = _gpu_text(gpu)
    if host.no_gpu:
        rows["GPU"] = f"none: {host.no_gpu}"
    return rows


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=any(columns), box=None)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(fact: Fact) -> str:
    if fact.value is None:
        return fact.reason
    if isinstance(fact.value, bool):
        return "yes" if fact.value else "no"
    return f"{fact.value:g}" if isinstance(fact.value, float) else str(fact.value)


def _size(fact: Fact) -> str:
    return _gib(fact.value) if isinstance(fact.value, int) else _text(fact)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _gpu_text(gpu: Gpu) -> str:
    bf16 = "bf16" if gpu.has_bf16 else "no bf16"
    return f"{gpu.name}, {_gib(gpu.memory_bytes)}, sm {gpu.compute_capability}, {bf16}"


def _version(package: str) -> Fact:
    try:
        return Fact(value=version(package))
    except PackageNotFoundError:
        return Fact(reason="not installed")
