"""The cores that this process may use, in the order in which copies of a model take them."""

import contextlib
import os
from pathlib import Path

from fastdlrm.bench.host import usable_cores

CPUS = Path("/sys/devices/system/cpu")


def core_order(allowed: frozenset[int] | None = None, root: Path = CPUS) -> tuple[int, ...]:
    """Logical cores, one of each physical core before the second of any.

    Args:
        allowed: Of which; None: those of this process' affinity.
        root: Where the system describes its cores.
    """
    cores = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    turns, found = {}, [_physical(core, root) for core in cores]
    for place, core in enumerate(cores):
        turns[core] = found[:place].count(found[place])
    return tuple(sorted(cores, key=lambda core: (turns[core], core)))


def num_physical(cores: tuple[int, ...], root: Path = CPUS) -> int:
    """How many physical cores some logical ones are of."""
    return len({_physical(core, root) for core in cores})


def pin(core: int) -> None:
    """Keep all threads of this process on one core."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), {core})


def default_copies(quick: bool, num_cores: int | None = None) -> tuple[int, ...]:
    """Copies to measure: up to twice the cores, on two cores or one up to 8.

    Args:
        quick: Whether few will do.
        num_cores: That this process may use; None: as it finds them.
    """
    c = usable_cores() if num_cores is None else num_cores
    if quick:
        return tuple(sorted({1, c, 2 * c}))
    if c <= 2:
        return tuple(range(1, 9))
    return tuple(sorted({1, 2, c // 4, c // 2, 3 * c // 4, c, 3 * c // 2, 2 * c} - {0}))


def _physical(core: int, root: Path) -> str:
    """Which logical cores are the same physical one; this one alone where nothing is said."""
    path = root / f"cpu{core}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.is_file() else str(core)
