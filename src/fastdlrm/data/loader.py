"""Batches of an epoch, gathered whole by threads while the last one is computed on.

The state of a loader is (epoch, batch index), so resuming costs nothing: the order of rows is a
pure function of the seed and the epoch.
"""

import os
from collections.abc import Callable, Generator

import torch

from fastdlrm.batch import Batch
from fastdlrm.data.order import EpochOrder, rank_slice
from fastdlrm.data.rows import Rows
from fastdlrm.data.threads import map_in_order

NUM_AHEAD = 2
"""Batches that may wait ready beyond one a worker: a slow batch holds up none of the others."""
MOST_WORKERS = 16


class Loader:
    """Batches of a split for one rank.

    Args:
        rows: The split.
        global_batch_size: Rows a step over all ranks; an epoch's last batch may be smaller.
        seed: Of the order of rows.
        block_rows: Consecutive rows that stay together, see `EpochOrder`.
        rank: Global rank.
        world_size: Number of ranks.
        pin: Whether batches are page-locked, as they should be on their way to a GPU.
        num_workers: Threads that gather a batch each; 0 leaves it to `default_workers`. Neither
            the batches nor their order depend on it.
    """

    def __init__(
        self,
        rows: Rows,
        global_batch_size: int,
        *,
        seed: int,
        block_rows: int = 1,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
        num_workers: int = 0,
    ) -> None:
        self._rows = rows
        self._size = global_batch_size
        self._seed = seed
        self._block_rows = block_rows
        self._rank = rank
        self._world_size = world_size
        self._pin = pin
        self._num_workers = num_workers or default_workers(pin)

    @property
    def num_batches(self) -> int:
        """Batches an epoch."""
        return -(-len(self._rows) // self._size)

    def size(self, batch: int) -> int:
        """Rows of an epoch's global batch, over all ranks."""
        return min(self._size, len(self._rows) - batch * self._size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Generator[Batch, None, None]:
        """This rank's slices of the global batches first_batch, first_batch + 1, ... of an epoch.

        Close the iterator (or exhaust it) to end its threads.
        """
        order = EpochOrder(len(self._rows), self._block_rows, self._seed, epoch)

        use_device = _for_threads(self._pin)

        def gather(k: int) -> Batch:
            use_device()
            start = k * self._size
            stop = min(start + self._size, len(self._rows))
            low, high = rank_slice(stop - start, self._rank, self._world_size)
            return self._rows.batch(order.rows(start + low, start + high), pin=self._pin)

        batches = range(first_batch, self.num_batches)
        yield from map_in_order(gather, batches, self._num_workers, NUM_AHEAD)


class SequentialLoader:
    """Batches of a split in its own order, for evaluation; arguments as `Loader`'s."""

    def __init__(
        self,
        rows: Rows,
        global_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
        num_workers: int = 0,
    ) -> None:
        self._rows = rows
        self._size = global_batch_size
        self._rank = rank
        self._world_size = world_size
        self._pin = pin
        self._num_workers = num_workers or default_workers(pin)

    def __iter__(self) -> Generator[Batch, None, None]:
        """This rank's slices of the batches."""
        use_device = _for_threads(self._pin)

        def gather(start: int) -> Batch:
            use_device()
            size = min(self._size, len(self._rows) - start)
            low, high = rank_slice(size, self._rank, self._world_size)
            return self._rows.batch(slice(start + low, start + high), pin=self._pin)

        starts = range(0, len(self._rows), self._size)
        return map_in_order(gather, starts, self._num_workers, NUM_AHEAD)


def _for_threads(pin: bool) -> Callable[[], None]:
    """What a thread calls before it page-locks memory: else it would wake up the first GPU."""
    if not pin:
        return lambda: None
    device = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(device)


def default_workers(pin: bool) -> int:
    """Threads that gather where none are asked for.

    Args:
        pin: Whether batches go to a GPU: then all cores but two gather, at most `MOST_WORKERS`;
            else training computes on the cores, and one thread gathers.
    """
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 2)) if pin else 1
