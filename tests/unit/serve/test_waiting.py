"""The queue: levels, counts, and what is kept of queries that ended."""

from fastdlrm.serve.waiting import MAX_DEAD, Entry, Part, Waiting, level_of


def queued(waiting: Waiting, number: int, *sizes: int, priority: int = 0) -> Entry:
    entry = Entry(
        number, sum(sizes), 9.0, level=level_of(priority), arrived_s=number, promised_s=0.0
    )
    start = 0
    for size in sizes:
        waiting.push(Part(entry, start, start + size))
        start += size
    return entry


def test_levels_of_priorities():
    assert [level_of(p) for p in (1, 2, 15, 16, 17, 2**32 - 1, 0)] == [0, 1, 14, 15, 15, 15, 16]


def test_counts_by_hand():
    waiting = Waiting()
    low = queued(waiting, 1, 5, 5)
    queued(waiting, 2, 7, priority=1)
    assert (waiting.num_rows, waiting.num_parts) == (17, 3)
    assert waiting.ahead_of(level_of(1)) == (7, 1)
    assert waiting.ahead_of(level_of(0)) == (17, 3)
    assert waiting.oldest_s() == 1
    assert waiting.pop().entry.id == 2
    assert waiting.pop().entry is low
    assert (low.rows_waiting, low.parts_waiting) == (5, 1)
    assert waiting.ahead_of(level_of(1)) == (0, 0)
    waiting.pop()
    assert waiting.pop() is None
    assert waiting.oldest_s() == float("inf")


def test_what_ended_is_never_handed_out():
    waiting = Waiting()
    entries = [queued(waiting, number, 1) for number in range(3)]
    entries[0].is_ended = True
    waiting.forget(entries[0])
    assert waiting.num_rows == 2
    assert waiting.oldest_s() == 1
    assert waiting.pop().entry is entries[1]


def test_little_is_kept_of_what_ended():
    waiting = Waiting()
    queued(waiting, 0, 1, priority=1)  # the head stays, so nothing behind is looked at
    for number in range(1, 10_000):
        entry = queued(waiting, number, 1)
        entry.is_ended = True
        waiting.forget(entry)
        kept = sum(len(queue) for queue in waiting._levels)
        assert kept <= MAX_DEAD + 2 * waiting.num_parts + 1
    assert (waiting.num_rows, waiting.num_parts) == (1, 1)


def test_what_goes_in_front_is_first_of_its_level():
    waiting = Waiting()
    entry = queued(waiting, 1, 4, 4)
    part = waiting.pop()
    waiting.push(part, is_first=True)
    assert waiting.head() is part
    assert entry.rows_waiting == 8
