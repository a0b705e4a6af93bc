"""What the machine is: processor, cores, memory and GPUs.

Invariant: what cannot be found out is a `Fact` without a value and with the reason, not an error.
"""

import os
import platform
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastdlrm.contracts.host import Fact, Gpu, Host

INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "amx": "amx_tile",
    "sve": "sve",
}
"""By the name shown, the flag of /proc/cpuinfo."""

CGROUPS = Path("/sys/fs/cgroup")

_NO_LIMIT_BYTES = 2**60  # version 1 of cgroups says "no limit" with a number of this size


def probe() -> Host:
    """Look at this machine."""
    import torch

    cpuinfo, meminfo = _read(Path("/proc/cpuinfo")), _read(Path("/proc/meminfo"))
    driver = _then(_read(Path("/proc/driver/nvidia/version")), parse_driver)
    gpus, no_gpu = _gpus(driver)
    own_groups = _read(Path("/proc/self/cgroup"))
    num_cores = os.cpu_count()
    return Host(
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_model=_then(cpuinfo, parse_cpu_model),
        num_cores=Fact(value=num_cores, reason="" if num_cores else "unknown to Python"),
        num_usable_cores=_affinity(),
        core_quota=_then(own_groups, core_quota),
        instruction_sets={
            name: _then(cpuinfo, partial(parse_cpu_flag, flag))
            for name, flag in INSTRUCTION_SETS.items()
        },
        torch_cpu_capability=Fact(value=torch.backends.cpu.get_cpu_capability()),
        memory_bytes=_then(meminfo, partial(parse_memory, "MemTotal")),
        available_memory_bytes=_then(meminfo, partial(parse_memory, "MemAvailable")),
        memory_limit_bytes=_then(own_groups, memory_limit),
        gpus=gpus,
        gpu_driver=driver,
        cuda=Fact(value=torch.version.cuda, reason="" if torch.version.cuda else "none"),
        no_gpu=no_gpu,
    )


def parse_cpu_model(cpuinfo: str) -> Fact:
    """The processor's name in the text of /proc/cpuinfo."""
    names = _values(cpuinfo, "model name")
    return Fact(value=names[0]) if names else Fact(reason="unknown: /proc/cpuinfo names no model")


def parse_cpu_flag(flag: str, cpuinfo: str) -> Fact:
    """Whether the first core has a flag ("flags" on x86, "Features" on Arm)."""
    lines = _values(cpuinfo, "flags") + _values(cpuinfo, "Features")
    if not lines:
        return Fact(reason="unknown: /proc/cpuinfo lists no flags")
    return Fact(value=flag in lines[0].split())


def parse_memory(name: str, meminfo: str) -> Fact:
    """A line of /proc/meminfo in bytes; the file counts units of 1024 bytes."""
    sizes = _values(meminfo, name)
    if not sizes:
        return Fact(reason=f"unknown: /proc/meminfo has no {name}")
    return Fact(value=int(sizes[0].removesuffix("kB")) * 1024)


def parse_driver(text: str) -> Fact:
    """The release in the text of /proc/driver/nvidia/version."""
    for word in text.partition("\n")[0].split():
        if word[0].isdigit() and "." in word:
            return Fact(value=word)
    return Fact(reason="unknown: /proc/driver/nvidia/version names no release")


def core_quota(own_groups: str, root: Path = CGROUPS) -> Fact:
    """The least quota of this process' cgroup and those above it, in cores.

    Args:
        own_groups: Text of /proc/self/cgroup.
        root: Where cgroups are mounted.
    """
    limits = []
    for folder in _group_folders(own_groups, "", root):
        quota, _, period = str(_read(folder / "cpu.max").value or "max").partition(" ")
        if quota != "max":
            limits.append(int(quota) / int(period))
    for folder in _group_folders(own_groups, "cpu", root):
        quota = str(_read(folder / "cpu.cfs_quota_us").value or -1)
        if int(quota) > 0:
            limits.append(int(quota) / int(str(_read(folder / "cpu.cfs_period_us").value)))
    return Fact(value=min(limits)) if limits else Fact(reason="none is set")


def usable_cores(root: Path = CGROUPS) -> int:
    """Cores' worth of time this process may use: by affinity, and whole ones of its quota."""
    affinity = _affinity().value or os.cpu_count() or 1
    quota = _then(_read(Path("/proc/self/cgroup")), partial(core_quota, root=root)).value
    cores = int(affinity)
    return max(1, cores if quota is None else min(cores, int(quota)))


def memory_limit(own_groups: str, root: Path = CGROUPS) -> Fact:
    """The least memory limit of this process' cgroup and those above it, in bytes.

    Args:
        own_groups: Text of /proc/self/cgroup.
        root: Where cgroups are mounted.
    """
    files = [f / "memory.max" for f in _group_folders(own_groups, "", root)]
    files += [f / "memory.limit_in_bytes" for f in _group_folders(own_groups, "memory", root)]
    found = [str(_read(file).value or "max").strip() for file in files]
    limits = [int(text) for text in found if text != "max" and int(text) < _NO_LIMIT_BYTES]
    return Fact(value=min(limits)) if limits else Fact(reason="none is set")


def why_no_gpu(*, torch_version: str, cuda: str | None, hidden: bool, driver: Fact) -> str:
    """Why torch sees no GPU, and what to do.

    Args:
        torch_version: Of the installed package.
        cuda: CUDA version that torch was built with; None without CUDA.
        hidden: Whether CUDA_VISIBLE_DEVICES hides every GPU.
        driver: Release of the NVIDIA driver.
    """
    if cuda is None:
        return f"torch {torch_version} is built without CUDA; install a CUDA build of torch"
    if hidden:
        return "CUDA_VISIBLE_DEVICES hides every GPU; unset it"
    if driver.value is None:
        return "no NVIDIA driver is loaded; install one if there is a GPU"
    return (
        f"NVIDIA driver {driver.value} is loaded, yet CUDA {cuda} finds no GPU; "
        "run nvidia-smi: the driver may be too old, or the GPU not passed to this container"
    )


def _gpus(driver: Fact) -> tuple[tuple[Gpu, ...], str]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        reason = why_no_gpu(
            torch_version=torch.__version__,
            cuda=torch.version.cuda,
            hidden=visible is not None and visible.strip() in ("", "-1"),
            driver=driver,
        )
        return (), "; ".join([reason, *(str(warning.message) for warning in caught)])
    try:
        return tuple(_gpu(index) for index in range(torch.cuda.device_count())), ""
    except RuntimeError as problem:
        return (), f"CUDA fails: {problem}; run nvidia-smi"


def _gpu(index: int) -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Gpu(
        name=properties.name,
        memory_bytes=properties.total_memory,
        compute_capability=f"{properties.major}.{properties.minor}",
        has_bf16=has_bf16,
    )


def _affinity() -> Fact:
    if not hasattr(os, "sched_getaffinity"):
        return Fact(reason=f"unknown: {platform.system()} does not tell")
    return Fact(value=len(os.sched_getaffinity(0)))


def _read(path: Path) -> Fact:
    try:
        return Fact(value=path.read_text(encoding="utf-8", errors="replace"))
    except OSError as problem:
        return Fact(reason=f"unknown: {path}: {problem.strerror}")


def _then(text: Fact, parse: Callable[[str], Fact]) -> Fact:
    """The parsed text, or why there is no text."""
    return text if text.value is None else parse(str(text.value))


def _values(text: str, name: str) -> list[str]:
    """What stands behind "name :" on each line that begins so."""
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for key, _, value in pairs if key.strip() == name and value.strip()]


def _group_folders(own_groups: str, controller: str, root: Path) -> list[Path]:
    """Folders of this process' cgroup and of every group above it.

    Args:
        own_groups: Text of /proc/self/cgroup: lines of "number:controllers:path".
        controller: Of version 1; empty for version 2, which has one tree for all.
        root: Where cgroups are mounted.
    """
    for line in own_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            return [root / controller / folder for folder in (group, *group.parents)]
    return []
