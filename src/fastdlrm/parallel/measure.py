"""Time this machine: the rates of a `Topology`, in about ten seconds.

All ranks measure at once, as they will work at once; the slowest speaks for all. The kernels that
train do the timed lookups and sorts. Nodes are not told apart: a collective is one of all ranks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fastdlrm.kernels.lookup import pooled_lookup
from fastdlrm.kernels.row_gradient import sort_rows
from fastdlrm.parallel.topology import Topology, free_host_bytes
from fastdlrm.parallel.world import World

REPEATS = 12
COPY_BYTES = {"cuda": 2**29, "cpu": 2**27}
GEMM_WIDTH = {"cuda": 8192, "cpu": 1024}
TABLE_BYTES = {"cuda": 2**32, "cpu": 2**28}
"""Far beyond a cache."""
NUM_ROWS = {"cuda": 2_000_000, "cpu": 200_000}
"""Looked up, and sorted."""
IDS_PER_BAG = 20
DIMS = (32, 128)
"""Of the two tables whose rows are timed: two times tell a row's bytes from its fixed time."""
EXCHANGED_BYTES = {"cuda": 2**27, "cpu": 2**23}
"""Of the large collective a rank; the small one is nearly all latency."""
SMALL_BYTES = 2**10
STEP_US = {"cuda": 100.0, "cpu": 1500.0}
EAGER_US = {"cuda": 3700.0, "cpu": 0.0}
COPIES_US = {"cuda": 25.0, "cpu": 0.0}
"""With these two what is not measured here, but on an H100's host and on two cores: `Topology` says
what they are."""


def measure_topology(world: World, device: torch.device) -> Topology:
    """Time memory, products, sorts and collectives on all ranks.

    Args:
        world: Entered; of one rank, communication is not measured and taken to cost nothing.
        device: Of this rank.
    """
    kind: Literal["cuda", "cpu"] = "cuda" if device.type == "cuda" else "cpu"
    row_ns, gather_gb_s = _rows(device)
    exchange_gb_s, reduce_gb_s, latency_us = _collectives(world, device)
    mine = Topology(
        name="measured",
        device=kind,
        num_ranks=world.size,
        ranks_per_node=world.size,
        memory_bytes=_free_bytes(world, device),
        gemm_tflop_s=_gemms(device),
        copy_gb_s=copy_gb_s(device),
        gather_gb_s=gather_gb_s,
        row_ns=row_ns,
        sort_ns=_sort(device),
        step_us=STEP_US[kind],
        eager_us=EAGER_US[kind],
        copies_us=COPIES_US[kind],
        exchange_gb_s=exchange_gb_s,
        reduce_gb_s=reduce_gb_s,
        latency_us=latency_us,
    )
    return slowest(world.gather(mine))


def slowest(found: list[Topology]) -> Topology:
    """One machine as bad as each rank's in every way; the ranks must agree on what is planned."""
    first = found[0]

    def least(name: str) -> float:
        return min(getattr(topology, name) for topology in found)

    def most(name: str) -> float:
        return max(getattr(topology, name) for topology in found)

    return Topology(
        name=first.name,
        device=first.device,
        num_ranks=first.num_ranks,
        ranks_per_node=first.ranks_per_node,
        memory_bytes=min(topology.memory_bytes for topology in found),
        gemm_tflop_s={
            precision: min(topology.gemm_tflop_s[precision] for topology in found)
            for precision in first.gemm_tflop_s
        },
        copy_gb_s=least("copy_gb_s"),
        gather_gb_s=least("gather_gb_s"),
        row_ns=most("row_ns"),
        sort_ns=most("sort_ns"),
        step_us=most("step_us"),
        eager_us=most("eager_us"),
        copies_us=most("copies_us"),
        exchange_gb_s=least("exchange_gb_s"),
        reduce_gb_s=least("reduce_gb_s"),
        latency_us=most("latency_us"),
    )


def _free_bytes(world: World, device: torch.device) -> int:
    """What a rank may fill: of its GPU, or its share of the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = free_host_bytes()
    return 2**63 - 1 if free is None else free // world.local_size


def copy_gb_s(device: torch.device) -> float:
    """GB/s, bytes read plus written, of copying memory on a device."""
    return COPY_BYTES[device.type] / _ns(copying(COPY_BYTES[device.type], device), device)


def copying(num_bytes: int, device: torch.device) -> Callable[[], Tensor]:
    """A copy of memory within a device.

    Args:
        num_bytes: Read plus written; a multiple of 8.
        device: Where.
    """
    source = torch.zeros(num_bytes // 8, device=device)
    return partial(torch.empty_like(source).copy_, source)


@contextmanager
def products_as(precision: str, device: torch.device) -> Iterator[torch.dtype]:
    """Multiply float32 as a precision says, on a GPU; a CPU does it the way the process is set to.

    Args:
        precision: fp32, tf32 (on a CPU the same as fp32) or bf16.
        device: That multiplies.

    Yields:
        The type of the matrices.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield torch.bfloat16 if precision == "bf16" else torch.float32
    finally:
        torch.set_float32_matmul_precision(before)


def _gemms(device: torch.device) -> dict[str, float]:
    """TFLOP/s by precision."""
    width, found = GEMM_WIDTH[device.type], {}
    for name in ("fp32", "tf32", "bf16"):
        with products_as(name, device) as dtype:
            a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
            found[name] = 2 * width**3 / _ns(partial(torch.matmul, a, b), device) / 1e3
    return found


def _rows(device: torch.device) -> tuple[float, float]:
    """A row's fixed ns and the GB/s of its bytes, from tables of two widths."""
    narrow, wide = (_row_ns(dim, device) for dim in DIMS)
    # noise must not make bytes free: a quarter of the wide row's time is theirs at least
    per_byte_ns = max(wide - narrow, wide / 4) / (4 * (DIMS[1] - DIMS[0]))
    return max(narrow - 4 * DIMS[0] * per_byte_ns, 0.0), 1 / per_byte_ns


def _row_ns(dim: int, device: torch.device) -> float:
    table = torch.zeros(TABLE_BYTES[device.type] // (4 * dim), dim, device=device)
    count = NUM_ROWS[device.type]
    rows = torch.randint(len(table), (count,), dtype=torch.int32, device=device)
    offsets = torch.arange(0, count + 1, IDS_PER_BAG, dtype=torch.int32, device=device)
    return _ns(lambda: pooled_lookup(table, rows, offsets), device) / count


def _sort(device: torch.device) -> float:
    count = NUM_ROWS[device.type]
    rows = torch.randint(2**24, (count,), dtype=torch.int32, device=device)
    return _ns(lambda: sort_rows(rows), device) / count


def _collectives(world: World, device: torch.device) -> tuple[float, float, float]:
    """GB/s of all-to-all and of all-reduce, and the latency in us, as `Topology` means them."""
    if world.size == 1:
        return float("inf"), float("inf"), 0.0
    W, large = world.size, EXCHANGED_BYTES[device.type]

    def exchange(num_bytes: int) -> float:
        return median_of(exchange_times_ns(world, device, num_bytes))

    def reduce(num_bytes: int) -> float:
        tensor = torch.zeros(num_bytes // 4, device=device)
        return _ns(lambda: world.all_reduce(tensor).wait(), device)

    small = W * SMALL_BYTES
    latency_ns = max(exchange(small), reduce(small))
    sent_bytes, reduced_bytes = large * (W - 1) / W, 2 * large * (W - 1) / W
    return (
        sent_bytes / max(exchange(large) - latency_ns, 1.0),
        reduced_bytes / max(reduce(large) - latency_ns, 1.0),
        latency_ns / 1e3,
    )


def exchange_times_ns(world: World, device: torch.device, num_bytes: int) -> list[int]:
    """Times of an all-to-all; all ranks must call it.

    Args:
        world: Entered, of two ranks or more.
        device: Of this rank.
        num_bytes: Of each rank's tensor, of which it keeps its own part.
    """
    sent = torch.zeros(num_bytes // 4 // world.size * world.size, device=device)
    received = torch.empty_like(sent)
    return _times_ns(lambda: world.all_to_all(received, sent).wait(), device)


def median_of(times: list[int]) -> float:
    """The upper one of the two in the middle."""
    return float(sorted(times)[len(times) // 2])


def _ns(call: Callable[[], object], device: torch.device) -> float:
    return median_of(_times_ns(call, device))


def _times_ns(call: Callable[[], object], device: torch.device) -> list[int]:
    """Of some calls, two unmeasured ones before them."""
    times = []
    for k in range(REPEATS + 2):
        _wait(device)
        began = time.perf_counter_ns()
        call()
        _wait(device)
        if k >= 2:
            times.append(time.perf_counter_ns() - began)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
