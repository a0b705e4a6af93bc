import threading

import pytest

from fastdlrm.data.threads import map_in_order


def test_results_come_in_order() -> None:
    second_done = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0:
            assert second_done.wait(10)
        if item == 1:
            second_done.set()
        return item * item

    assert list(map_in_order(slow_first, range(5), 2)) == [0, 1, 4, 9, 16]
    assert list(map_in_order(slow_first, [], 2)) == []


def test_no_further_than_the_workers_are_ahead() -> None:
    drawn = []

    def items() -> object:
        for item in range(100):
            drawn.append(item)
            yield item

    results = map_in_order(str, items(), 3)
    assert next(results) == "0"
    assert len(drawn) == 4
    results.close()


def test_more_results_wait_where_asked_for() -> None:
    done = []
    results = map_in_order(done.append, range(100), 2, num_ahead=3)
    next(results)
    results.close()
    assert len(done) <= 6  # two a worker and three ahead, and the one taken


def test_an_error_ends_the_work() -> None:
    begun = []

    def fail(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("item 1")
        return item

    results = map_in_order(fail, range(1000), 2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        list(results)
    assert len(begun) < 10
