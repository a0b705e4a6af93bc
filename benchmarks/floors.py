"""The least time a step can take: bytes and FLOPs counted from the shape over measured ceilings.

Everything is summed, nothing overlaps: an implementation that overlaps well may pass 100 %.

Shapes: B batch, L ids in the batch, U different rows among them, D embedding dim.
"""

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from shapes import Shape

from fastdlrm.batch import Batch
from fastdlrm.bench.counting import ModelShape, forward_work, training_work
from fastdlrm.bench.measure import wait
from fastdlrm.parallel.measure import GEMM_WIDTH, copying

ROW_PROBES = 200_000
COPY_BYTES = 2**28
MAX_PROBED_BYTES = 2**31


def ceilings(shape: Shape, device: torch.device) -> dict[str, float]:
    """What this machine can do, measured now.

    Returns:
        copy_gb_s (bytes read plus written), row_ns (a random row of D float32), gemm_fp32_gflop_s
        (the fastest of torch's ways on the CPU), gemm_bf16_gflop_s, with CUDA gemm_tf32_gflop_s.
    """
    found = {
        "copy_gb_s": COPY_BYTES / _seconds(copying(COPY_BYTES, device), device) / 1e9,
        "row_ns": _row_seconds(shape, device) / ROW_PROBES * 1e9,
    }
    is_cuda = device.type == "cuda"
    ways = [("fp32", torch.float32, "highest"), ("bf16", torch.bfloat16, "highest")]
    ways.append(("tf32", torch.float32, "high") if is_cuda else ("fp32", torch.float32, "medium"))
    for name, dtype, precision in ways:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        key = f"gemm_{name}_gflop_s"
        found[key] = max(found.get(key, 0.0), _gemm(dtype, device))
        torch.set_float32_matmul_precision(before)
    return found


def work(
    shape: Shape, batches: Sequence[Batch], *, is_training: bool, precision: str
) -> dict[str, float]:
    """FLOPs and bytes of one step, means over the batches.

    Returns:
        gemm_flop (linear layers and products of vectors), row_visits (rows read, and for training
        read and written in the update), stream_bytes (gradients of the bags, written once and read
        once).
    """
    B, num_tables = batches[0].num_samples, len(shape.rows)
    interaction = shape.interaction()
    cost = interaction.cost()
    counted = ModelShape(
        bottom=(shape.num_dense, *shape.bottom),
        top=(interaction.width, *shape.top, 1),
        num_sparse=num_tables,
        dim=shape.dim,
        num_products=cost.num_products,
        joint_layers=cost.layers,
        num_joint_moved=cost.num_moved,
    )
    num_ids = B * sum(shape.bag_sizes)
    if not is_training:
        found = forward_work(counted, B, num_ids)
        visits, stream_bytes = float(num_ids), 0.0
    else:
        unique = sum(_num_rows(shape, batch) for batch in batches) / len(batches)
        found = training_work(counted, B, num_ids, unique)
        size = 4 if precision == "fp32" or precision == "tf32" else 2
        visits, stream_bytes = num_ids + 2 * unique, 2.0 * B * num_tables * shape.dim * size
    gemm_flop = found["fc"].flop + found["interaction"].flop
    return {"gemm_flop": gemm_flop, "row_visits": visits, "stream_bytes": stream_bytes}


def floor_ms(counted: dict[str, float], found: dict[str, float], precision: str) -> float:
    """The sum of all parts at the ceilings, in ms."""
    # a machine whose bf16 is slower than its fp32 could compute in fp32
    peak = found["gemm_fp32_gflop_s"]
    if precision != "fp32":
        peak = max(peak, found.get(f"gemm_{precision}_gflop_s", 0.0))
    return (
        counted["gemm_flop"] / peak / 1e6
        + counted["row_visits"] * found["row_ns"] / 1e6
        + counted["stream_bytes"] / found["copy_gb_s"] / 1e6
    )


def _num_rows(shape: Shape, batch: Batch) -> int:
    """U: different rows that a batch reads."""
    ids = batch.sparse.ids.split([batch.num_samples * size for size in shape.bag_sizes])
    return sum(len(torch.unique(feature)) for feature in ids)


def _row_seconds(shape: Shape, device: torch.device) -> float:
    """Time to read random rows: one by one, or summed so that next to nothing is written."""
    num_rows = min(sum(shape.rows), MAX_PROBED_BYTES // (4 * shape.dim))
    table = torch.zeros(num_rows, shape.dim, device=device)
    rows = torch.randint(num_rows, (ROW_PROBES,), dtype=torch.int32, device=device)
    offsets = torch.arange(0, ROW_PROBES, 20, dtype=torch.int32, device=device)
    read = torch.empty(ROW_PROBES, shape.dim, device=device)
    return min(
        _seconds(lambda: torch.index_select(table, 0, rows, out=read), device),
        _seconds(lambda: F.embedding_bag(rows, table, offsets, mode="sum"), device),
    )


def _gemm(dtype: torch.dtype, device: torch.device) -> float:
    width = GEMM_WIDTH[device.type]
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return 2 * width**3 / _seconds(lambda: a @ b, device) / 1e9


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The least of some calls: a ceiling is what can be reached."""
    times = []
    for _ in range(12):
        wait(device)
        began = time.perf_counter_ns()
        call()
        wait(device)
        times.append(time.perf_counter_ns() - began)
    return min(times) / 1e9
