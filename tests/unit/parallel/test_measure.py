"""The micro-benchmark measures something of the right kind; what, only the machine knows."""

import pytest
import torch

from fastdlrm.parallel import measure
from fastdlrm.parallel.measure import measure_topology, slowest
from fastdlrm.parallel.world import World
from tests.unit.parallel.machines import machine


def test_the_slowest_rank_speaks_for_all() -> None:
    fast = machine()
    slow = machine(
        memory_bytes=2**20,
        gemm_tflop_s={"fp32": 2.0, "tf32": 0.5, "bf16": 1.0},
        copy_gb_s=0.5,
        row_ns=20.0,
        exchange_gb_s=1.0,
        latency_us=0.001,
    )
    found = slowest([fast, slow])
    assert found.memory_bytes == 2**20
    assert found.gemm_tflop_s == {"fp32": 1.0, "tf32": 0.5, "bf16": 1.0}
    assert (found.copy_gb_s, found.gather_gb_s, found.row_ns) == (0.5, 1.0, 20.0)
    assert (found.exchange_gb_s, found.latency_us) == (1.0, 0.005)


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On small arrays, to be quick."""
    for sizes, small in (
        (measure.COPY_BYTES, 2**22),
        (measure.GEMM_WIDTH, 256),
        (measure.TABLE_BYTES, 2**24),
        (measure.NUM_ROWS, 20_000),
    ):
        monkeypatch.setitem(sizes, "cpu", small)
    before = torch.get_float32_matmul_precision()
    found = measure_topology(World(), torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == before
    assert (found.name, found.device, found.num_ranks) == ("measured", "cpu", 1)
    assert found.memory_bytes > 2**20
    assert 0.1 < found.copy_gb_s < 10_000
    assert 0.01 < found.gather_gb_s < 10_000
    assert 0 <= found.row_ns < 10_000
    assert 0.01 < found.sort_ns < 10_000
    assert all(1e-4 < speed < 1000 for speed in found.gemm_tflop_s.values())
    assert found.latency_us == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu() -> None:
    found = measure_topology(World(), torch.device("cuda"))
    assert found.device == "cuda"
    assert 100 < found.copy_gb_s < 20_000
    assert found.gemm_tflop_s["bf16"] > found.gemm_tflop_s["fp32"] > 1
    assert 0 <= found.row_ns < 10
    assert found.sort_ns < 10
