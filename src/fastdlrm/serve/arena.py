"""Shared memory where the inputs of queries lie: the front writes, workers read.

The memory is anonymous (a memfd): nothing is left on disk or in /dev/shm however the processes end.
The first free block that fits is taken, so that low addresses are used again and stay in caches.
Invariants: blocks never overlap; freed neighbours are one block; the size is fixed.
"""

import mmap
import os
from bisect import bisect_left

ALIGNMENT = 64


class Arena:
    """Memory in blocks.

    Args:
        size: Bytes, rounded up to whole pages.

    Attributes:
        fd: For a worker to map.
        size: Bytes.
        num_used: Bytes in use.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = os.memfd_create("fastdlrm-requests", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self.num_used = 0
        self._memory = mmap.mmap(self.fd, self.size)
        self._view = memoryview(self._memory)
        self._starts = [0]
        self._sizes = [self.size]
        self._used: dict[int, int] = {}

    def allocate(self, size: int) -> int | None:
        """Take a block.

        Args:
            size: Bytes, at least 1.

        Returns:
            Where it starts, a multiple of 64; None where no free block is large enough.
        """
        size = (size + ALIGNMENT - 1) & -ALIGNMENT
        index = next((i for i, free in enumerate(self._sizes) if free >= size), None)
        if index is None:
            return None
        start, free = self._starts[index], self._sizes[index]
        if free == size:
            del self._starts[index], self._sizes[index]
        else:
            self._starts[index] = start + size
            self._sizes[index] = free - size
        self._used[start] = size
        self.num_used += size
        return start

    def view(self, start: int, size: int) -> memoryview:
        """Bytes of a block."""
        return self._view[start : start + size]

    def free(self, start: int) -> None:
        """Give a block back."""
        size = self._used.pop(start)
        self.num_used -= size
        starts, sizes = self._starts, self._sizes
        index = bisect_left(starts, start)
        if index < len(starts) and start + size == starts[index]:
            size += sizes[index]
            del starts[index], sizes[index]
        if index and starts[index - 1] + sizes[index - 1] == start:
            sizes[index - 1] += size
        else:
            starts.insert(index, start)
            sizes.insert(index, size)

    def close(self) -> None:
        """Give the memory back; workers that still map it keep it until they end."""
        self._view.release()
        self._memory.close()
        os.close(self.fd)


def attach(fd: int) -> memoryview:
    """An arena as a worker reads it; closes `fd`."""
    size = os.fstat(fd).st_size
    memory = mmap.mmap(fd, size, prot=mmap.PROT_READ)
    os.close(fd)
    return memoryview(memory)
