"""The order in which an epoch visits the rows: a pure function of (seed, epoch).

Neither ranks nor workers enter, so global batch k of epoch e holds the same rows for any world
size. Blocks of consecutive rows are permuted; sorting a hash gives the permutation, so it does not
depend on a library's random stream.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts.hashing import mix


class EpochOrder:
    """Positions of an epoch -> rows of the split."""

    def __init__(self, num_rows: int, block_rows: int, seed: int, epoch: int) -> None:
        """Draw the order.

        Args:
            num_rows: Rows of the split.
            block_rows: Consecutive rows that stay together; 1 permutes rows. Memory is 16 bytes a
                block while drawing.
            seed: Of the run.
            epoch: From 0.
        """
        self.num_rows = num_rows
        self._block_rows = block_rows
        num_blocks = -(-num_rows // block_rows)
        keys = _mix(np.arange(num_blocks, dtype=np.uint64) ^ np.uint64(mix(mix(seed) ^ epoch)))
        self._blocks = np.argsort(keys)  # mix is a bijection: no ties
        # The last block is short by `gap` rows; positions behind it skip the gap.
        self._gap = num_blocks * block_rows - num_rows
        place = int(np.flatnonzero(self._blocks == num_blocks - 1)[0]) if num_blocks else 0
        self._gap_position = (place + 1) * block_rows - self._gap

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at positions start .. stop - 1, shape (stop - start,)."""
        return _rows(self._blocks, self._block_rows, self._gap, self._gap_position, start, stop)


def rank_slice(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of a global batch that a rank takes: start and stop, within one row of equal."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


def _mix(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`contracts.hashing.mix` on an array."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@njit(cache=True, nogil=True)
def _rows(
    blocks: NDArray[np.int64],
    block_rows: int,
    gap: int,
    gap_position: int,
    start: int,
    stop: int,
) -> NDArray[np.int64]:
    """`EpochOrder.rows`; `gap_position` is the first position behind the short block."""
    rows = np.empty(stop - start, dtype=np.int64)
    block, offset = divmod(start + (gap if start >= gap_position else 0), block_rows)
    i = 0
    while i < len(rows):
        length = min(block_rows - offset, len(rows) - i)
        if start + i < gap_position:
            length = min(length, gap_position - start - i)
        first = blocks[block] * block_rows + offset
        for k in range(length):
            rows[i + k] = first + k
        i += length
        block, offset = block + 1, 0
    return rows
