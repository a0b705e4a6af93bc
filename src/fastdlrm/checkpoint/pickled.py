"""Tensors out of a file that torch.save wrote, by any program, without running what is in it.

Invariant: of what a pickle may call, only torch's tensors and numpy's plain numbers are known here;
a file that names anything else is refused before it is called.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from fastdlrm.errors import CheckpointError

NUMBERS = ("float32", "float64", "int32", "int64", "uint64")
"""Types of the numbers that the DLRM reference keeps beside its weights: losses, counts of hits."""
ALLOWED: list[Any] = [
    (scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 names it
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in NUMBERS),
]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, which holds it alone or under the key "state_dict".

    The file is mapped where it is of torch's format since 1.6, so the tensors take no memory.

    Args:
        path: Made by torch.save.

    Returns:
        Tensors of floating-point numbers on the CPU, by name, in the order of the file.

    Raises:
        CheckpointError: It is no such file, holds more than tensors and numbers, or no state dict.
    """
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}, no state dict; save model.state_dict(), "
            "alone or under the key 'state_dict'"
        )
    for name, value in content.items():
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided
        if not isinstance(name, str) or not is_plain or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"{path}: {name!r} is {kind}; a state dict of floating-point tensors is allowed: "
                "save model.state_dict(), alone or under the key 'state_dict'"
            )
    return content


def _load(path: Path) -> Any:
    """What a file holds."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name one that torch.save wrote")
    is_zip = zipfile.is_zipfile(path)
    try:
        with safe_globals(ALLOWED):
            if is_zip and (unsafe := sorted(get_unsafe_globals_in_checkpoint(path))):
                raise CheckpointError(
                    f"{path}: would call {unsafe[0]}; only tensors and numbers are read: save "
                    "model.state_dict() of a model on one process"
                )
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError) as why:
        said = str(why).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: not a file of tensors and numbers that torch.save wrote: {said}"
        ) from why
