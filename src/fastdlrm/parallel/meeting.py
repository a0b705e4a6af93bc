"""How ranks find each other, also after a restart.

torchrun keeps one store for all its restarts. In it lie the addresses of ranks that are dead, and
ranks of one start cannot tell them from each other's: they would wait for the dead. So the first
rank gives every start a name of its own, and what the ranks of this start say is kept under it.
"""

import time
import uuid
from collections.abc import Iterator

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

LIMIT_S = 1800.0
"""For all ranks to come, as long as torch itself would wait."""
_POLL_S = 0.02


def meet(rank: int, size: int, store: Store | None = None) -> tuple[Store, bool]:
    """Wait for all ranks of this start.

    Args:
        rank: Global rank.
        size: Ranks in all.
        store: What all ranks share; None: the one that torchrun's environment names.

    Returns:
        A store that holds nothing of earlier starts; on the first rank whether there was one.

    Raises:
        TimeoutError: Not all ranks came.
    """
    if store is None:
        store, _, _ = next(rendezvous("env://", rank, size))
    shared = PrefixStore("fastdlrm", store)
    is_again = rank == 0 and shared.check(["start"])
    name = _name_start(shared, size) if rank == 0 else _learn_name(shared, rank)
    return PrefixStore(name, store), is_again


def _name_start(store: Store, size: int) -> str:
    """The first rank: name this start, and say who has heard it."""
    name = uuid.uuid4().hex
    answers = [f"{name}/{rank}" for rank in range(1, size)]
    store.set("start", name)
    for _ in _polls(0):
        if store.check(answers):
            break
    store.set(name, " ".join(store.get(answer).decode() for answer in answers))
    return name


def _learn_name(store: Store, rank: int) -> str:
    """Another rank: say it has heard the name; where it is not counted, the name is an old one."""
    own = uuid.uuid4().hex  # a rank of an earlier start said something else
    name = ""
    for _ in _polls(rank):
        if store.check(["start"]):
            name = store.get("start").decode()
            store.set(f"{name}/{rank}", own)
            if store.check([name]) and own in store.get(name).decode():
                break
    return name


def _polls(rank: int) -> Iterator[None]:
    """One a look. The store's own waits would let no signal through."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        yield
        time.sleep(_POLL_S)
    raise TimeoutError(f"rank {rank}: the other ranks did not come within {LIMIT_S:.0f} s")
