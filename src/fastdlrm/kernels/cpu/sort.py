"""A stable sort of row numbers and something of each: radix sort, over the bits that rows have.

Shapes: L ids in the batch, S segments.
"""

from functools import lru_cache

import torch
from numba import cfunc, njit, types
from torch import Tensor

from fastdlrm.kernels.cpu.native import (
    COMPILE,
    INLINE,
    block_of,
    float32_scratch,
    ints,
    longs,
    next_piece,
)
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.row_gradient import define_sort_rows

MAX_DIGIT_BITS = 11
"""Of a pass: its counters fit the first-level cache, and three passes sort any 31 bits."""

SMALL_IDS = 2**11
"""Up to this many ids one thread is faster."""


def sort_rows(
    rows: Tensor, values: Tensor | None, segments: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `fastdlrm.kernels.row_gradient.sort_rows`; int64 is left to torch.

    A segment is sorted by one thread; without segments there is one.
    """
    if rows.dtype != torch.int32:
        return define_sort_rows(rows, values, segments)
    num_ids = len(rows)
    source = rows.contiguous()
    source_values = None if values is None else values.to(torch.int32).contiguous()
    bounds = torch.tensor([0, num_ids]) if segments is None else segments.contiguous()
    keys, places, spare_keys, spare_places = torch.empty(4, num_ids, dtype=torch.int32)
    run(
        _kernel(),
        source.data_ptr(),
        0 if source_values is None else source_values.data_ptr(),
        bounds.data_ptr(),
        len(bounds) - 1,
        keys.data_ptr(),
        places.data_ptr(),
        spare_keys.data_ptr(),
        spare_places.data_ptr(),
        is_small=num_ids <= SMALL_IDS or len(bounds) == 2,
    )
    return keys, places


@lru_cache(maxsize=1)
def _kernel() -> int:
    return cfunc(types.void(types.int64), **COMPILE)(_sort).address


def _sort(address: int) -> None:
    """The kernel; its block holds what `sort_rows` passes to `run`, in that order."""
    block = block_of(address, 9)
    bounds = longs(block[3], block[4] + 1)
    counts = float32_scratch(1 << MAX_DIGIT_BITS)
    while True:
        segment = next_piece(address)
        if segment >= block[4]:
            return
        start, count = bounds[segment], bounds[segment + 1] - bounds[segment]
        source = block[1] + 4 * start
        low, high = _range(source, count)
        num_bits = 0
        while high - low >> num_bits:
            num_bits += 1
        num_passes = max((num_bits + MAX_DIGIT_BITS - 1) // MAX_DIGIT_BITS, 1)
        digit_bits = (num_bits + num_passes - 1) // num_passes
        has_values, values = block[2] != 0, block[2] + 4 * start
        if not has_values:
            values = start
        for step in range(num_passes):
            # the last pass ends in the result, so passes before it alternate towards that
            is_result = (num_passes - step) % 2 == 1
            keys = (block[5] if is_result else block[7]) + 4 * start
            places = (block[6] if is_result else block[8]) + 4 * start
            _count(counts, source, count, low, step * digit_bits, digit_bits)
            _move(
                counts,
                (source, values, has_values or step > 0, keys, places),
                count,
                low,
                step * digit_bits,
                digit_bits,
            )
            source, values = keys, places


@njit(**INLINE)
def _range(source: int, count: int) -> tuple[int, int]:
    """The least and the largest key."""
    keys = ints(source, count)
    low = high = 0
    if count:
        low = high = int(keys[0])
    for i in range(count):
        low, high = min(low, int(keys[i])), max(high, int(keys[i]))
    return low, high


@njit(**INLINE)
def _count(counts: int, source: int, count: int, low: int, shift: int, digit_bits: int) -> None:
    """Where the keys of each digit begin in the result: an exclusive sum of their counts."""
    places, keys = ints(counts, 1 << digit_bits), ints(source, count)
    mask = (1 << digit_bits) - 1
    for digit in range(1 << digit_bits):
        places[digit] = 0
    for i in range(count):
        places[((int(keys[i]) - low) >> shift) & mask] += 1
    total = 0
    for digit in range(1 << digit_bits):
        here = places[digit]
        places[digit] = total
        total += here


@njit(**INLINE)
def _move(
    counts: int,
    tensors: tuple[int, int, bool, int, int],
    count: int,
    low: int,
    shift: int,
    digit_bits: int,
) -> None:
    """Put the keys and values where they go, in their order.

    Args:
        counts: Address of the place of each digit's next key.
        tensors: Addresses of keys and values, whether the second is one or the first value of a
            count, and the addresses of the moved ones.
        count: Of keys.
        low: Least of all keys.
        shift: Of the digit.
        digit_bits: Its bits.
    """
    source, values, has_values, new_source, new_values = tensors
    places, keys, new_keys = (
        ints(counts, 1 << digit_bits),
        ints(source, count),
        ints(new_source, count),
    )
    moved, given = ints(new_values, count), ints(values if has_values else source, count)
    mask = (1 << digit_bits) - 1
    for i in range(count):
        key = keys[i]
        digit = ((int(key) - low) >> shift) & mask
        to = places[digit]
        places[digit] = to + 1
        new_keys[to] = key
        moved[to] = given[i] if has_values else values + i
