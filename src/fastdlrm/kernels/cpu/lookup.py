"""The rows of the stack that the ids of bags stand for, on the CPU.

Shapes: F sparse features, B batch, L ids.
"""

from functools import lru_cache

import torch
from numba import cfunc, types
from torch import Tensor

from fastdlrm.kernels.cpu.native import COMPILE, block_of, ints, next_piece
from fastdlrm.kernels.cpu.threads import run
from fastdlrm.kernels.lookup import define_stack_rows

SMALL_IDS = 2**15
"""Below this many ids one thread is faster."""


def stack_rows(ids: Tensor, lengths: Tensor | None, starts: Tensor) -> Tensor:
    """See `fastdlrm.kernels.lookup.stack_rows`; one id a bag is left to torch."""
    if lengths is None or not ids.dtype == lengths.dtype == starts.dtype == torch.int32:
        return define_stack_rows(ids, lengths, starts)
    ids, lengths = ids.contiguous(), lengths.contiguous()
    rows = torch.empty_like(ids)
    run(
        _rows_kernel(),
        ids.data_ptr(),
        lengths.data_ptr(),
        len(lengths) // max(len(starts), 1),
        starts.data_ptr(),
        len(starts),
        rows.data_ptr(),
        is_small=len(ids) < SMALL_IDS,
    )
    return rows


@lru_cache(maxsize=1)
def _rows_kernel() -> int:
    return cfunc(types.void(types.int64), **COMPILE)(_rows).address


def _rows(address: int) -> None:
    """Add each feature's start to its ids."""
    block = block_of(address, 7)
    ids, bags, rows = block[1], block[3], block[6]
    starts, lengths = ints(block[4], block[5]), ints(block[2], bags * block[5])
    while True:
        feature = next_piece(address)
        if feature >= len(starts):
            return
        first = count = 0
        for bag in range(bags * feature):
            first += lengths[bag]
        for bag in range(bags * feature, bags * (feature + 1)):
            count += lengths[bag]
        source, target = ints(ids + 4 * first, count), ints(rows + 4 * first, count)
        start = starts[feature]
        for i in range(count):
            target[i] = source[i] + start
