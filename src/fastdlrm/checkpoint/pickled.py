"""Tensors out of a file that torch.save wrote, by any program, without running what is in it.

Invariant: of what a pickle may call, only torch's tensors and numpy's plain numbers are known here;
a file that names anything else is refused before it is called.
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from fastdlrm.errors import CheckpointError

NUMBERS = ("float32", "float64", "int32", "int64", "uint64")
"""Types of the numbers that the DLRM reference keeps beside its weights: losses, counts of hits."""
ADAGRAD_KEYS = {"sum", "momentum"}
"""Of torch's Adagrad, and of the reference's row-wise one."""
EMPTY: dict[str, Any] = {"param_groups": (), "state": {}}
ALLOWED: list[Any] = [
    (scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 names it
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in NUMBERS),
]


class PickledWeights(NamedTuple):
    """What a file holds of a model, tensors of floating-point numbers on the CPU.

    Attributes:
        tensors: By name, in the order of the file.
        square_sums: What an Adagrad kept of each parameter: sums of squared gradients, for
            row-wise Adagrad of their means over a row. By name; none for other optimizers.
    """

    tensors: dict[str, Tensor]
    square_sums: dict[str, Tensor]


def read_pickled(path: Path) -> PickledWeights:
    """The state dict of a file, which holds it alone or under the key "state_dict".

    The file is mapped where it is of torch's format since 1.6, so the tensors take no memory.

    Args:
        path: Made by torch.save.

    Raises:
        CheckpointError: It is no such file, holds more than tensors and numbers, or no state dict.
    """
    content = _load(path)
    optimizer = None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        optimizer, content = content.get("opt_state_dict"), content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}, no state dict; save model.state_dict(), "
            "alone or under the key 'state_dict'"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not _is_plain(value):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"{path}: {name!r} is {kind}; a state dict of floating-point tensors is allowed: "
                "save model.state_dict(), alone or under the key 'state_dict'"
            )
    try:
        return PickledWeights(content, _square_sums(optimizer or EMPTY, list(content)))
    except (AttributeError, KeyError, TypeError) as why:
        raise CheckpointError(
            f"{path}: its opt_state_dict is no optimizer's: {why!r}; save the file without it"
        ) from why


def _square_sums(optimizer: Any, names: list[str]) -> dict[str, Tensor]:
    """Of an optimizer's state dict; it has the parameters in the order of the model's."""
    places = [place for group in optimizer["param_groups"] for place in group["params"]]
    if len(places) != len(names):  # it is of a part of the model, and nothing says of which
        return {}
    found = {}
    for name, place in zip(names, places, strict=True):
        state = optimizer["state"].get(place, {})
        for key in ADAGRAD_KEYS & state.keys():
            if _is_plain(state[key]):
                found[name] = state[key]
    return found


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of floating-point numbers that lies there as it is."""
    is_strided = isinstance(value, Tensor) and value.layout == torch.strided
    return is_strided and value.is_floating_point()


def _load(path: Path) -> Any:
    """What a file holds."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name one that torch.save wrote")
    try:
        is_zip = zipfile.is_zipfile(path)
        with safe_globals(ALLOWED):
            unsafe = sorted(get_unsafe_globals_in_checkpoint(path)) if is_zip else []
            if not unsafe:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as why:  # a damaged pickle ends in any of them
        said = str(why).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: not a file of tensors and numbers that torch.save wrote: {said}"
        ) from why
    raise CheckpointError(
        f"{path}: would call {unsafe[0]}; only tensors and numbers are read: save "
        "model.state_dict() of a model on one process"
    )
