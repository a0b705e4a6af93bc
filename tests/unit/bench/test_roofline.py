import msgspec
import pytest
import torch

from fastdlrm.bench.counting import Product
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.placement import ceilings_of
from fastdlrm.bench.roofline import bench_roofline, notes, own_precisions, products_of, roofline_of
from fastdlrm.contracts.bench_result import Effort
from tests.unit.bench.results import ceilings, step


def made(**operators: float):
    steps = [*step("inference", 1, 1, other=1), *step("inference", 64, 300, **operators)]
    asked = {("inference", 64): [Product("forward", 2, 3, 4)] * 2}
    return roofline_of(ceilings(), steps, asked, "fp32", on_gpu=False)


def test_products_are_looked_up_by_shape():
    single, whole = made(fc=8).steps
    fc = {one.operator: one for one in whole.operators}["fc"]
    assert fc.products_ms == 2  # two of 1 ms
    assert single.operators[0].products_ms is None


def test_bf16_may_be_computed_in_float32_and_not_the_other_way():
    found = ceilings_of(ceilings())
    assert own_precisions("bf16", found) == ["bf16", "fp32"]
    assert own_precisions("fp32", found) == ["fp32"]
    assert own_precisions("tf32", found) == ["fp32"]  # a CPU has none


def test_notes_say_where_caches_deceive():
    found = notes(made(interaction=80), ceilings(), cache_bytes=10**8, table_bytes=5 * 10**7)
    assert found[0].startswith("tables of 50 MB fit the last cache of 100 MB")
    assert found[1].startswith(
        "inference of 64: interaction moves its counted bytes 2.50 times as fast as its ceiling"
    )
    assert len(found) == 2
    small = notes(made(interaction=300), ceilings(), cache_bytes=10**9, table_bytes=2 * 10**9)
    assert len(small) == 1
    assert small[0].startswith("too little memory is free: copies of 1e+03 MB fit the last cache")
    assert "tells no cache" in notes(made(interaction=300), ceilings(), 0, 1)[0]
    fast = notes(made(fc=2), ceilings(), 10**8, 10**9)
    assert "fc is 2.00 times as fast as the fastest product measured" in fast[0]


def test_each_pass_has_its_products():
    model = BenchModel.load("ncf", rows_scale=0.001, device="cpu", overrides=())
    found = products_of(model, [8], ["inference", "training"])
    forward, training = found["inference", 8], found["training", 8]
    # 256-256-128-64-64 and the output behind the joined vectors: six layers
    assert [one.kind for one in forward] == ["forward"] * 6
    # without a bottom MLP each layer has both gradients
    assert len(training) == 18


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu():
    model = BenchModel.load("random", rows_scale=0.1, device="cuda", overrides=())
    effort = Effort(warmup_s=0.02, seconds=0.1, min_samples=5, num_rounds=3)
    result = bench_roofline(model, [64], ["inference", "training"], effort)
    found = result.roofline.ceilings
    assert set(found.gflop_s) == {"fp32", "tf32", "bf16"}
    assert found.host_to_device_gb_s > 1
    assert found.device_to_host_gb_s > 1
    assert found.memory_gb_s > 100
    assert [one.batch_size for one in result.roofline.steps] == [1, 64, 1, 64]
    assert any("from page-locked memory" in note for note in result.notes)
    assert msgspec.json.encode(result)
