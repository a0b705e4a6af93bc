import os

import pytest

from fastdlrm.bench.cores import core_order, default_copies, num_physical


def described(folder, siblings: dict[int, str]):
    for core, text in siblings.items():
        path = folder / f"cpu{core}" / "topology"
        path.mkdir(parents=True)
        (path / "thread_siblings_list").write_text(f"{text}\n")
    return folder


def test_each_physical_core_comes_once_before_any_comes_twice(tmp_path):
    apart = described(tmp_path / "a", {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    beside = described(tmp_path / "b", {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    every = frozenset(range(4))
    assert core_order(every, apart) == (0, 1, 2, 3)
    assert core_order(every, beside) == (0, 2, 1, 3)
    assert core_order(frozenset({1, 2, 3}), beside) == (1, 2, 3)
    assert num_physical((0, 1, 2, 3), beside) == 2
    assert num_physical((1, 2), beside) == 2


def test_a_core_that_is_not_described_is_its_own(tmp_path):
    assert core_order(frozenset({5, 3}), tmp_path) == (3, 5)
    assert num_physical((3, 5), tmp_path) == 2


def test_the_cores_are_those_of_the_affinity():
    assert set(core_order()) == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("num_cores", "copies"),
    [
        (1, (1, 2, 3, 4, 5, 6, 7, 8)),
        (2, (1, 2, 3, 4, 5, 6, 7, 8)),
        (4, (1, 2, 3, 4, 6, 8)),
        (16, (1, 2, 4, 8, 12, 16, 24, 32)),
    ],
)
def test_copies_go_up_to_twice_the_cores_or_8(num_cores, copies):
    assert default_copies(False, num_cores) == copies


def test_few_copies_will_do():
    assert default_copies(True, 2) == (1, 2, 4)
    assert default_copies(True, 1) == (1, 2)
    assert default_copies(True, 16) == (1, 16, 32)
