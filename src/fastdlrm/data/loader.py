"""Batches of an epoch, gathered by a background thread while the last one is computed on.

The state of a loader is (epoch, batch index), so resuming costs nothing: the order of rows is a
pure function of the seed and the epoch.
"""

import queue
import threading
from collections.abc import Generator, Iterator

from fastdlrm.batch import Batch
from fastdlrm.data.order import EpochOrder, rank_slice
from fastdlrm.data.rows import Rows, Selection

DEPTH = 2
"""Batches ready ahead of the one computed on."""


class Loader:
    """Batches of a split for one rank.

    Args:
        rows: The split.
        global_batch_size: Rows a step over all ranks; an epoch's last batch may be smaller.
        seed: Of the order of rows.
        block_rows: Consecutive rows that stay together, see `EpochOrder`.
        rank: Global rank.
        world_size: Number of ranks.
        pin: Whether batches are page-locked.
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
    ) -> None:
        self._rows = rows
        self._size = global_batch_size
        self._seed = seed
        self._block_rows = block_rows
        self._rank = rank
        self._world_size = world_size
        self._pin = pin

    @property
    def num_batches(self) -> int:
        """Batches an epoch."""
        return -(-len(self._rows) // self._size)

    def epoch(self, epoch: int, first_batch: int = 0) -> Generator[Batch, None, None]:
        """This rank's slices of the global batches first_batch, first_batch + 1, ... of an epoch.

        Close the iterator (or exhaust it) to end its thread.
        """
        return prefetch(self._gather(epoch, first_batch))

    def _gather(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        order = EpochOrder(len(self._rows), self._block_rows, self._seed, epoch)
        for k in range(first_batch, self.num_batches):
            start = k * self._size
            stop = min(start + self._size, len(self._rows))
            low, high = rank_slice(stop - start, self._rank, self._world_size)
            yield self._rows.batch(order.rows(start + low, start + high), pin=self._pin)


class SequentialLoader:
    """Batches of a split in its own order, for evaluation; same arguments as `Loader`."""

    def __init__(self, rows: Rows, batch_size: int, *, pin: bool = False) -> None:
        self._rows = rows
        self._size = batch_size
        self._pin = pin

    def __iter__(self) -> Iterator[Batch]:
        return prefetch(self._gather())

    def _gather(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._size):
            rows: Selection = slice(start, min(start + self._size, len(self._rows)))
            yield self._rows.batch(rows, pin=self._pin)


def prefetch(source: Iterator[Batch]) -> Generator[Batch, None, None]:
    """Run an iterator in a thread, `DEPTH` items ahead; its exceptions are raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(DEPTH)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in source:
                if not put(item):
                    return
            put(None)
        except BaseException as problem:  # noqa: BLE001 (handed over and raised by the consumer)
            put(problem)

    thread = threading.Thread(target=produce, name="fastdlrm-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
