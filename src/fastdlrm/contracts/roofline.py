"""Where the steps of a model stand under what their machine can do.

Times are milliseconds, GB are 10^9 bytes.
"""

from typing import Literal

import msgspec

Bound = Literal["compute", "memory", "gather", "overhead", "uncounted"]


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine can do: of each measurement the median of its fastest round."""

    gflop_s: dict[str, float]
    """The fastest product of matrices, by type: fp32, tf32, bf16, int8."""
    stream_gb_s: dict[int, float]
    """Bytes in order, read plus written, by how many are moved again and again: caches hold few;
    of the most no cache holds much (copy or triad)."""
    gather_gb_s: float | None
    """Rows at random places of the model's own tables; None without tables."""
    host_to_device_gb_s: float | None = None
    """From page-locked memory; None on a CPU."""
    device_to_host_gb_s: float | None = None
    all_to_all_gb_s: float | None = None
    """That a rank sends while it receives as much; None of one process."""

    @property
    def memory_gb_s(self) -> float:
        """Of more bytes than caches hold."""
        return self.stream_gb_s[max(self.stream_gb_s)]


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """An operator class of a step, or the step, under the ceilings."""

    operator: str
    ms: float
    """Its part of the step's time."""
    flop: float
    num_bytes: float
    compute_ms: float
    """Its FLOPs at the machine's speed."""
    stream_ms: float
    """Its bytes that lie in order, at the machine's speed."""
    gather_ms: float
    """Its rows at random places, at the machine's speed."""
    fixed_ms: float
    """Above the floor in a step of one sample: what does not shrink with the batch."""
    products_ms: float | None
    """Its products of matrices, each measured alone at its own shape; None where it has none."""
    floor_ms: float
    """The larger of compute and bytes; of the step the sum, no operator's above its own time."""
    bound: Bound
    """What takes longest of compute, bytes and fixed time; of the step, what most of its time is
    under. "uncounted": FLOPs and bytes are not counted, and the time is not fixed."""

    @property
    def intensity(self) -> float:
        """FLOPs a byte; 0 where no bytes are counted."""
        return self.flop / self.num_bytes if self.num_bytes else 0.0

    @property
    def share(self) -> float:
        """Of the ceiling's speed. Above 1: bytes were counted that did not move."""
        return self.floor_ms / self.ms if self.ms else 0.0


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The change that would help a step most."""

    operator: str
    saved_ms: float
    """Of the step, if the operator took its least time."""
    speedup: float
    """Of the step then (Amdahl)."""
    sentence: str


class PlacedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step and its operator classes."""

    kind: str
    """inference or training."""
    batch_size: int
    step: Placed
    operators: tuple[Placed, ...]
    advice: Advice


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's ceilings and a model's steps under them."""

    ceilings: Ceilings
    steps: tuple[PlacedStep, ...]
