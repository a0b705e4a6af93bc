"""The machine that a plan is for: rates of one rank, of its links, and its memory.

Named ones are for planning without the machine; `measure_topology` (parallel/measure.py) times the
one at hand.
"""

import re
from pathlib import Path
from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError

GIB = 2**30


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ranks that are alike, on nodes that are alike. GB is 10^9 bytes, GiB is 2^30."""

    name: str
    device: Literal["cuda", "cpu"]
    num_ranks: int
    """There are no more than these."""
    ranks_per_node: int
    memory_bytes: int
    """That a rank may fill: of the GPU, or its share of the host."""
    gemm_tflop_s: dict[str, float]
    """Products of large matrices, by precision: fp32, tf32, bf16."""
    copy_gb_s: float
    """Bytes read plus bytes written, in order."""
    gather_gb_s: float
    """Bytes of rows at random places, a row's fixed time left out."""
    row_ns: float
    """Fixed time of a row at a random place."""
    sort_ns: float
    """An id of a batch, sorted by row."""
    step_us: float
    """A step beyond what is counted: starts and ends of kernels, the host's part."""
    eager_us: float
    """Least time of a step that no graph can hold: the host starts its kernels one by one."""
    exchange_gb_s: float
    """All-to-all, bytes a rank sends to others of its node while it receives as many."""
    reduce_gb_s: float
    """All-reduce within a node: 2 (W - 1) / W of the tensor's bytes over its time."""
    latency_us: float
    """Of a collective within a node, whatever its size."""
    node_gb_s: float = 0.0
    """Bytes a rank sends to other nodes while it receives as many; 0: there is one node."""
    node_latency_us: float = 0.0
    """Of a collective over several nodes."""
    copies_us: float = 0.0
    """A step with data_parallel tables beyond what is counted: they have kernels of their own."""


_H100 = Topology(
    # gemm, copy: benchmarks/results/train-cuda-*.json, "ceilings". gather, row: times of the lookup
    # and update kernels there, "breakdown" (3.3 M rows of 128 B in 0.167 ms; 321 k rows of 512 B
    # read and written in 0.29 ms). sort: 852 k ids in 0.134 ms. Memory: 79 GiB, 1 of them CUDA's.
    name="h100",
    device="cuda",
    num_ranks=0,
    ranks_per_node=8,
    memory_bytes=76 * GIB,
    gemm_tflop_s={"fp32": 51.0, "tf32": 400.0, "bf16": 766.0},
    copy_gb_s=2600.0,
    gather_gb_s=2400.0,
    row_ns=0.02,
    sort_ns=0.16,
    # what the step of 8,192 samples takes beyond the rest: assumed for all
    step_us=100.0,
    # benchmarks/results/train-cuda-rmc2-small-2048-bf16.json: 3.7 ms for 1.15 ms of kernels
    eager_us=3700.0,
    # all-reduce of 1 GiB over 8 cards, NVLink multicast off: 361 GB/s measured; all-to-all and
    # the latency assumed from NVLink's 450 GB/s a direction
    exchange_gb_s=340.0,
    reduce_gb_s=360.0,
    latency_us=20.0,
    # assumed: one 400 Gbit/s adapter a card at 85 %
    node_gb_s=42.0,
    node_latency_us=40.0,
    copies_us=25.0,
)
_H200 = msgspec.structs.replace(
    _H100,
    name="h200",
    memory_bytes=136 * GIB,
    gemm_tflop_s={"fp32": 51.0, "tf32": 400.0, "bf16": 790.0},
    # by the ratio of the data sheets, 4.8 to 3.35 TB/s: assumed
    copy_gb_s=3700.0,
    gather_gb_s=3400.0,
    row_ns=0.015,
    # one card, several shapes: benchmarks/results/parallel-cuda-*-1x*.json
    step_us=150.0,
)
_CARDS = {card.name: card for card in (_H100, _H200)}
_CPU = Topology(
    # two cores of an EPYC a rank: copy 41 GB/s, random rows 5 ns at 160 B and 9.5 ns at 512 B,
    # float32 440 and bf16 850 GFLOP/s; docs/scaling.md. Gloo on one host and the memory: assumed
    name="cpu",
    device="cpu",
    num_ranks=64,
    ranks_per_node=64,
    memory_bytes=8 * GIB,
    gemm_tflop_s={"fp32": 0.44, "tf32": 0.44, "bf16": 0.85},
    copy_gb_s=41.0,
    gather_gb_s=78.0,
    row_ns=3.0,
    sort_ns=5.0,
    step_us=1500.0,
    eager_us=0.0,
    exchange_gb_s=1.0,
    reduce_gb_s=1.0,
    latency_us=200.0,
)


def named_topology(name: str) -> Topology:
    """A machine by name: h100xN, h200xN (nodes of 8 cards, N in all) or cpu.

    Raises:
        ConfigError: No machine has this name.
    """
    if name == "cpu":
        return _CPU
    match = re.fullmatch(r"(h100|h200)x([1-9][0-9]{0,4})", name)
    if match is None:
        raise ConfigError(
            f"topology {name!r}: h100xN or h200xN (N cards, e.g. h100x8), cpu or measure is allowed"
        )
    return msgspec.structs.replace(_CARDS[match[1]], name=name, num_ranks=int(match[2]))


def card_topology(card: str, num_ranks: int, ranks_per_node: int) -> Topology | None:
    """A machine of a card whose rates are known; None for another one.

    Args:
        card: Its name, as the driver tells it.
        num_ranks: In all.
        ranks_per_node: Of them on one node.
    """
    for name, topology in _CARDS.items():
        if name.upper() in card.upper():
            return msgspec.structs.replace(
                topology,
                name=f"{name}x{num_ranks}",
                num_ranks=num_ranks,
                ranks_per_node=ranks_per_node,
            )
    return None


def free_host_bytes() -> int | None:
    """What the system says is available; None where it does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
