"""The way a run multiplies matrices on a CPU: chosen before its first step, kept for good.

RUN/matmul.json   the choice and what it rests on; a resumed run computes the same way, bit for bit

Evaluation and prediction compute that way too; they measure nothing.
"""

from pathlib import Path

import msgspec
import torch

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import CheckpointError
from fastdlrm.kernels.cpu.matmul import apply, calibrate
from fastdlrm.kernels.registry import Matmul, Way

FILE = "matmul.json"


def settle(run: Path, device: torch.device, precision: str = "fp32") -> str:
    """Choose, or find what was chosen, and compute that way from here on.

    Args:
        run: The run's folder.
        device: Where the run computes; a GPU needs no choice.
        precision: What the config asks for; the answer warns where it is the slower one.

    Returns:
        A line that says so; empty where there is no choice.

    Raises:
        CheckpointError: The file is damaged.
    """
    if device.type != "cpu":
        return ""
    choice = chosen(run)
    is_new = choice is None
    if choice is None:
        choice = calibrate()
        write_atomic(run / FILE, msgspec.json.format(msgspec.json.encode(choice)) + b"\n")
    way, since = apply(choice.way), ""
    if not is_new:
        is_kept = way == choice.way
        since = ", as the run began" if is_kept else ", since the run's way is not exact"
    speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in choice.gflop_s.items())
    line = f"float32 products: {way}{since} ({choice.reason}); GFLOP/s: {speeds}"
    if precision == "bf16" and choice.gflop_s["bf16"] < choice.gflop_s[choice.way]:
        line += "; bf16 is the slower on this processor: set train.precision = 'fp32'"
    return line


def use(run: Path, device: torch.device) -> Way:
    """Compute as a run did, where it has chosen.

    Args:
        run: The run's folder.
        device: Where to compute.

    Returns:
        How a CPU multiplies from here on.

    Raises:
        CheckpointError: The file is damaged.
    """
    if device.type != "cpu" or (choice := chosen(run)) is None:
        return "default"
    return apply(choice.way)


def chosen(run: Path) -> Matmul | None:
    """What a run chose; None before it did.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Matmul)
    except (msgspec.DecodeError, msgspec.ValidationError) as problem:
        raise CheckpointError(
            f"{path}: damaged: {problem}; delete it to choose anew (a resumed run may then differ "
            "in the last digits)"
        ) from problem
