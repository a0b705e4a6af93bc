"""Random numbers and keys of whole tensors: the twin of `fastdlrm.data.keys` for any device.

Keys are int64 tensors that hold the bits of unsigned numbers; products wrap around as theirs do.
"""

import numpy as np
import torch
from torch import Tensor

from fastdlrm.data import keys

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTOR_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_FACTOR_2 = 0x94D049BB133111EB - (1 << 64)


def mix(key: Tensor) -> Tensor:
    """`contracts.hashing.mix` of each key, int64."""
    key = (key ^ _shifted(key, 30)) * _FACTOR_1
    key = (key ^ _shifted(key, 27)) * _FACTOR_2
    return key ^ _shifted(key, 31)


def unit_of(key: Tensor) -> Tensor:
    """A key's upper 53 bits as float64 in [0, 1)."""
    return _shifted(key, 11).double() * 2.0**-53


def draws(stream: np.uint64, start: int, stop: int, device: torch.device) -> Tensor:
    """`keys.draws`: numbers start .. stop - 1 of a stream, 64 bits each."""
    place = torch.arange(start + 1, stop + 1, device=device)
    return mix(signed(stream) + place * _GOLDEN)


def uniforms(stream: np.uint64, start: int, stop: int, device: torch.device) -> Tensor:
    """`keys.uniforms`: numbers start .. stop - 1 of a stream, float64, the same on every device."""
    if device.type == "cpu":  # one pass where tensors take a dozen
        return torch.from_numpy(keys.uniforms(stream, start, stop))
    return unit_of(draws(stream, start, stop, device))


def signed(key: np.uint64) -> int:
    """The int64 with the bits of an unsigned key."""
    return int(np.int64(key.view(np.int64)))


def _shifted(key: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros from the left."""
    return (key >> bits) & ((1 << (64 - bits)) - 1)
