"""What a machine is, as it stands in results and diagnoses.

Invariant: what could not be found out is a `Fact` without a value and with the reason.
"""

import msgspec


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Something found, or why it was not."""

    value: bool | int | float | str | None = None
    """None: unknown, or there is none."""
    reason: str = ""
    """Why there is no value."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that torch can use."""

    name: str
    memory_bytes: int
    compute_capability: str
    """Major and minor version, e.g. 9.0."""
    has_bf16: bool
    """Whether it computes in bfloat16 without emulation."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as this process sees it."""

    os: str
    cpu_model: Fact
    num_cores: Fact
    """Logical cores of the machine."""
    num_usable_cores: Fact
    """Logical cores this process may run on (affinity)."""
    core_quota: Fact
    """Cores' worth of time this process may use (cgroup)."""
    instruction_sets: dict[str, Fact]
    torch_cpu_capability: Fact
    """Widest instruction set that torch's own CPU kernels use."""
    memory_bytes: Fact
    available_memory_bytes: Fact
    memory_limit_bytes: Fact
    """Of this process (cgroup)."""
    gpus: tuple[Gpu, ...]
    gpu_driver: Fact
    cuda: Fact
    """CUDA version that torch was built with."""
    no_gpu: str
    """Why there is no GPU; empty where there is one."""


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """One of the first core's caches."""

    level: int
    kind: str
    """Data, Instruction or Unified."""
    size_bytes: int
    num_sharing: int
    """Logical cores that share it."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """A machine and its software when something was measured on it."""

    host: Host
    caches: tuple[Cache, ...]
    """Empty where the system lists none."""
    smt: Fact
    """Whether cores run several threads each."""
    governor: Fact
    """Of the first core's frequency."""
    copy_gb_s: dict[str, float]
    """Measured, bytes read plus written, by device."""
    num_threads: int
    """That torch computes with on the CPU."""
    load_average: float
    """Runnable processes over the minute before: what else the machine did."""
    versions: dict[str, str]
    """By package, and "python"."""
