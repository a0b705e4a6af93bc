from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore, Store

from fastdlrm.parallel import meeting
from fastdlrm.parallel.meeting import meet


def all_meet(store: Store, ranks: range) -> list[tuple[Store, bool]]:
    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(lambda rank: meet(rank, 3, store), ranks))


def test_what_one_rank_says_the_others_hear() -> None:
    first, second, third = (met for met, _ in all_meet(HashStore(), range(3)))
    first.set("address", "here")
    assert second.get("address") == third.get("address") == b"here"


def test_nothing_is_left_of_an_earlier_start() -> None:
    """Whoever comes first, the first rank or the others."""
    store = HashStore()
    for start, ranks in enumerate((range(3), range(2, -1, -1), range(3))):
        found = dict(zip(ranks, all_meet(store, ranks), strict=True))
        assert not any(met.check(["address"]) for met, _ in found.values())
        found[1][0].set("address", "of a rank that will be gone")
        assert [found[rank][1] for rank in range(3)] == [start > 0, False, False]


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_come(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    store = HashStore()
    all_meet(store, range(3))  # all that the store knows is of this start
    monkeypatch.setattr(meeting, "LIMIT_S", 0.1)
    with pytest.raises(TimeoutError, match=f"rank {rank}: the other ranks did not come within"):
        meet(rank, 3, store)
