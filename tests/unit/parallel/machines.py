"""A machine of round numbers and a workload small enough to work out by hand."""

from typing import Any

import msgspec

from fastdlrm.parallel.topology import Topology
from fastdlrm.parallel.workload import Feature, Workload

MACHINE = Topology(
    name="round",
    device="cuda",
    num_ranks=64,
    ranks_per_node=64,
    memory_bytes=2**30,
    gemm_tflop_s={"fp32": 1.0, "tf32": 1.0, "bf16": 1.0},
    copy_gb_s=1.0,
    gather_gb_s=1.0,
    row_ns=10.0,
    sort_ns=2.0,
    step_us=0.001,
    eager_us=0.0,
    exchange_gb_s=2.0,
    reduce_gb_s=4.0,
    latency_us=0.005,
    node_gb_s=1.0,
    node_latency_us=0.007,
)
"""1 byte a ns copied and gathered, 1000 FLOP a ns."""

WORKLOAD = Workload(
    num_embeddings={"a": 8, "b": 4},
    features=(Feature(table="a"), Feature(table="b", ids_per_sample=2.0, is_bag=True)),
    embedding_dim=4,
    bottom_mlp=(2, 4),
    top_mlp=(6, 1),
    global_batch_size=4,
)


def machine(**changes: Any) -> Topology:
    """MACHINE with other numbers."""
    return msgspec.structs.replace(MACHINE, **changes)


def workload(**changes: Any) -> Workload:
    """WORKLOAD with other numbers."""
    return msgspec.structs.replace(WORKLOAD, **changes)
