"""Which library multiplies float32 matrices on this CPU: timed and checked, chosen and said.

torch's own choice (MKL) runs at half speed on some processors. The precision "medium" routes
products to oneDNN: at full accuracy where the processor has no tile unit for bfloat16, and with
rounding to bfloat16 where it has one. So the other way is taken only if it is faster *and* exact.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from fastdlrm.kernels.registry import Matmul, Way

PRECISIONS: dict[Way, str] = {"default": "highest", "onednn": "medium"}
"""What `torch.set_float32_matmul_precision` takes."""

SHAPE = (1024, 512, 512)
"""Samples, inputs and outputs of the layer that is timed: half a GFLOP."""

REPEATS = 9

MIN_GAIN = 1.1
"""The other way must be this much faster: a draw must not change from run to run."""

MAX_ERROR = 1e-5
"""Largest error of a product, relative to float64, that counts as float32."""


def calibrate() -> Matmul:
    """Time float32 products both ways, check them against float64, and choose; under 0.5 s."""
    B, K, N = SHAPE
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, K, generator=generator) for rows in (B, N))
    before = torch.get_float32_matmul_precision()
    times: dict[str, list[int]] = {"default": [], "onednn": [], "bf16": []}
    error = {str(way): relative_error(way) for way in PRECISIONS}
    try:
        x16, weight16 = x.bfloat16(), weight.bfloat16()
        for _ in range(REPEATS):
            for way, precision in PRECISIONS.items():
                torch.set_float32_matmul_precision(precision)
                times[way].append(_nanoseconds(lambda: x @ weight.t()))
            times["bf16"].append(_nanoseconds(lambda: x16 @ weight16.t()))
    finally:
        torch.set_float32_matmul_precision(before)
    speeds = {way: round(2 * B * K * N / median(taken), 1) for way, taken in times.items()}
    way, reason = choose(speeds, error)
    return Matmul(way=way, gflop_s=speeds, error=error, reason=reason)


def relative_error(way: Way) -> float:
    """Of products computed this way here: root mean square, relative to float64."""
    _, K, N = SHAPE
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, K, generator=generator) for rows in (256, N))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[way])
    try:
        found = (x @ weight.t()).double()
    finally:
        torch.set_float32_matmul_precision(before)
    expected = x.double() @ weight.double().t()
    return float((found - expected).norm() / expected.norm())


def choose(gflop_s: dict[str, float], error: dict[str, float]) -> tuple[Way, str]:
    """The way to take, and why."""
    gain = gflop_s["onednn"] / gflop_s["default"]
    if error["onednn"] > MAX_ERROR:
        return "default", f"oneDNN rounds to bfloat16 here: relative error {error['onednn']:.0e}"
    if gain < MIN_GAIN:
        return "default", f"oneDNN is {gain:.2f} times as fast, {MIN_GAIN} are asked for"
    return "onednn", f"{gain:.2f} times as fast, relative error {error['onednn']:.0e}"


def is_exact(way: Way) -> bool:
    """Whether the way is as exact on this machine, which may be another, as float32 should be."""
    return way == "default" or relative_error(way) <= MAX_ERROR


def apply(way: Way) -> Way:
    """Compute float32 products this way from here on, in the whole process.

    Args:
        way: Chosen on some machine.

    Returns:
        The way that is taken: torch's own where the other is not exact here.
    """
    taken: Way = way if is_exact(way) else "default"
    torch.set_float32_matmul_precision(PRECISIONS[taken])
    return taken


def _nanoseconds(call: Callable[[], object]) -> int:
    began = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - began
