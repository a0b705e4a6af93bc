"""`activation_codes` on the CPU, in one pass."""

import struct
from functools import lru_cache

import numpy as np
import torch
from numba import cfunc, types
from torch import Tensor

from fastdlrm.kernels.activation_codes import define_activation_codes
from fastdlrm.kernels.cpu.native import (
    COMPILE,
    bits_float32,
    block_of,
    float32_bits,
    floats,
    next_piece,
    octets,
)
from fastdlrm.kernels.cpu.threads import run

PIECE = 4096
"""Numbers a thread takes at once."""

SMALL_NUMBERS = 2**17
"""Below this many numbers one thread is faster."""

ROUND = np.float32(1.5 * 2**23)
"""Added, it leaves the nearest whole number, of two the even one, in the last bits."""

ROUND_BITS = np.int32(np.float32(1.5 * 2**23).view(np.int32))

LARGEST = np.float32(2**22)
"""Beyond it codes are cut in any case, and `ROUND` would round no more."""


def activation_codes(x: Tensor, steps: float, zero: int) -> Tensor:
    """See `fastdlrm.kernels.activation_codes`; the kernel knows contiguous float32."""
    if x.dtype != torch.float32 or not x.is_contiguous():
        return define_activation_codes(x, steps, zero)
    codes = torch.empty_like(x, dtype=torch.uint8)
    (factor,) = struct.unpack("i", struct.pack("f", steps))
    count = x.numel()
    is_small = count < SMALL_NUMBERS
    run(_kernel(), x.data_ptr(), count, factor, zero, codes.data_ptr(), is_small=is_small)
    return codes


@lru_cache(maxsize=1)
def _kernel() -> int:
    return cfunc(types.void(types.int64), **STRICT)(_codes).address


STRICT = {**COMPILE, "fastmath": False}
"""Rounding by `ROUND` must not be optimised away."""


def _codes(address: int) -> None:
    block = block_of(address, 6)
    count, factor = block[2], bits_float32(np.uint32(block[3]))
    zero = np.int32(block[4])
    while True:
        start = next_piece(address) * PIECE
        if start >= count:
            return
        size = min(PIECE, count - start)
        numbers, codes = floats(block[1] + 4 * start, size), octets(block[5] + start, size)
        for i in range(size):
            scaled = numbers[i] * factor
            scaled = scaled if scaled > -LARGEST else -LARGEST  # of a NaN too
            scaled = scaled if scaled < LARGEST else LARGEST
            code = np.int32(float32_bits(scaled + ROUND)) - ROUND_BITS + zero
            code = code if code > np.int32(0) else np.int32(0)
            code = code if code < np.int32(255) else np.int32(255)
            codes[i] = np.uint8(code)
