"""Work in threads, results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def map_in_order(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    num_workers: int,
    num_ahead: int = 0,
) -> Generator[ResultT, None, None]:
    """Map in threads; finished results wait to be taken: one a worker and `num_ahead` at most.

    The first error is raised in its place; what has not begun by then is not done. Closing the
    iterator, or exhausting it, ends the threads.
    """
    waiting: deque[Future[ResultT]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="fastdlrm-worker")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_workers + num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
