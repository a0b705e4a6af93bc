"""Large pages for large tables: a random row costs one miss, no walk of page tables."""

import ctypes
from functools import lru_cache
from typing import Any

from torch import Tensor

PAGE_BYTES = 2**21
"""Of a large page, on x86 and on most Arm systems."""

MADV_HUGEPAGE = 14


def advise_large_pages(tensor: Tensor) -> None:
    """Ask Linux to back a tensor with large pages; to be called before its memory is first written.

    It is advice: where the system knows no such pages, or the tensor is small or not on the CPU,
    nothing happens.
    """
    first = -(-tensor.data_ptr() // PAGE_BYTES) * PAGE_BYTES
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // PAGE_BYTES * PAGE_BYTES
    if tensor.device.type == "cpu" and first < end and (madvise := _madvise()) is not None:
        madvise(first, end - first, MADV_HUGEPAGE)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """The system's function, or None."""
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
