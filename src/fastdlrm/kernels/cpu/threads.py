"""Run a compiled kernel on torch's own threads.

Numba's pool beside torch's would fight it for the cores, since a thread of either goes on spinning
for some ms after its work is done. So kernels run in the OpenMP pool that torch has loaded, through
the entry point that GCC compiles `#pragma omp parallel` to; where there is none, on one thread.
"""

import ctypes
from array import array
from functools import lru_cache
from typing import Any

import torch

Entry = Any
"""GOMP_parallel(function, argument, number of threads, flags)."""


def run(kernel: int, *numbers: int, is_small: bool = False) -> None:
    """Call a kernel with a block of numbers, on all of torch's threads at once; back when done.

    Args:
        kernel: Address of a compiled `void(int64)`.
        numbers: Of the block, after the counter of pieces.
        is_small: Whether the work is too little to be shared.
    """
    block = array("q", (0, *numbers))
    address, _ = block.buffer_info()
    entry, num_threads = pool_entry(), torch.get_num_threads()
    if entry is None or is_small or num_threads == 1:
        _alone(kernel)(address)
    else:
        entry(kernel, address, num_threads, 0)


@lru_cache(maxsize=1)
def pool_entry() -> Entry | None:
    """The entry point of the pool that torch computes with; None where it has another kind."""
    if "OpenMP" not in torch.__config__.parallel_info().partition("ATen parallel backend")[2]:
        return None
    entry = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if entry is not None:
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        entry.restype = None
    return entry


@lru_cache(maxsize=64)
def _alone(kernel: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(kernel)
