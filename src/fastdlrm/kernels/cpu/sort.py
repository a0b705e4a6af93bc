"""A stable sort of row numbers and where they stood: radix sort, over the bits that rows have.

Shapes: L ids in the batch.
"""

from functools import lru_cache

import numpy as np
import torch
from numba import cfunc, njit, types
from torch import Tensor

from fastdlrm.kernels.cpu.native import COMPILE, block_of, ints, next_piece
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.row_gradient import define_sort_rows

MAX_DIGIT_BITS = 12
"""Of a pass: its counters fit the first-level cache, and three passes sort any 31 bits."""

SMALL_IDS = 2**14
"""Up to this many ids one thread is faster."""

MAX_PARTS = 16


def sort_rows(rows: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `fastdlrm.kernels.row_gradient.sort_rows`; int64 is left to torch."""
    if rows.dtype != torch.int32:
        return define_sort_rows(rows, values)
    num_ids = len(rows)
    is_small = num_ids <= SMALL_IDS
    parts = 1 if is_small else min(torch.get_num_threads(), MAX_PARTS)
    keys, places, spare_keys, spare_places = torch.empty(4, num_ids, dtype=torch.int32)
    num_bits = max(int(rows.max()).bit_length(), 1) if num_ids else 1
    num_passes = -(-num_bits // MAX_DIGIT_BITS)
    digit_bits = -(-num_bits // num_passes)
    counts = np.empty(parts << digit_bits, dtype=np.int32)
    source = rows.contiguous()
    source_places = None if values is None else values.to(torch.int32).contiguous()
    for shift in range(0, num_bits, digit_bits):
        numbers = (
            num_ids,
            parts,
            shift,
            source.data_ptr(),
            0 if source_places is None else source_places.data_ptr(),
            keys.data_ptr(),
            places.data_ptr(),
            counts.ctypes.data,
            digit_bits,
        )
        run(_count_kernel(), *numbers, is_small=is_small)
        _starts(counts, parts)
        run(_move_kernel(), *numbers, is_small=is_small)
        source, source_places = keys, places
        keys, places, spare_keys, spare_places = spare_keys, spare_places, keys, places
    assert source_places is not None
    return source, source_places


@lru_cache(maxsize=1)
def _count_kernel() -> int:
    return cfunc(types.void(types.int64), **COMPILE)(_count).address


@lru_cache(maxsize=1)
def _move_kernel() -> int:
    return cfunc(types.void(types.int64), **COMPILE)(_move).address


def _count(address: int) -> None:
    """Count the digits of each part."""
    block = block_of(address, 10)
    num_ids, parts, shift, digit_bits = block[1], block[2], block[3], block[9]
    keys = ints(block[4], num_ids)
    counts = ints(block[8], parts << digit_bits)
    mask = (1 << digit_bits) - 1
    while True:
        part = next_piece(address)
        if part >= parts:
            return
        base = part << digit_bits
        counts[base : base + mask + 1] = 0
        for i in range(num_ids * part // parts, num_ids * (part + 1) // parts):
            counts[base + ((keys[i] >> shift) & mask)] += 1


@njit(**COMPILE)
def _starts(counts: np.ndarray, parts: int) -> None:
    """Where the ids of each digit and part go: an exclusive sum over digits, then parts."""
    total, num_digits = 0, len(counts) // parts
    for digit in range(num_digits):
        for part in range(parts):
            at = part * num_digits + digit
            count = counts[at]
            counts[at] = total
            total += count


def _move(address: int) -> None:
    """Put each part's ids where they go, in their order."""
    block = block_of(address, 10)
    num_ids, parts, shift, digit_bits = block[1], block[2], block[3], block[9]
    keys = ints(block[4], num_ids)
    places = ints(block[5], num_ids)
    has_places = block[5] != 0
    new_keys = ints(block[6], num_ids)
    new_places = ints(block[7], num_ids)
    counts = ints(block[8], parts << digit_bits)
    mask = (1 << digit_bits) - 1
    while True:
        part = next_piece(address)
        if part >= parts:
            return
        base = part << digit_bits
        for i in range(num_ids * part // parts, num_ids * (part + 1) // parts):
            key = keys[i]
            at = base + ((key >> shift) & mask)
            to = counts[at]
            counts[at] = to + 1
            new_keys[to] = key
            new_places[to] = places[i] if has_places else i
