import pytest
import torch

from fastdlrm.bench.ceilings import Load, array_bytes, measure_exchange, measured, multiplying
from fastdlrm.bench.counting import Product
from fastdlrm.contracts.bench_result import Effort
from fastdlrm.parallel.world import World

CPU = torch.device("cpu")
SHORT = Effort(warmup_s=0.0, seconds=0.01, min_samples=3, num_rounds=3)


@pytest.mark.parametrize("kind", ["forward", "weight gradient", "input gradient"])
def test_products_have_the_shape_they_are_named_by(kind):
    found = multiplying(Product(kind, 2, 3, 4), torch.float32, CPU)()
    assert found.shape == (2, 4)
    assert found.abs().min() > 0


def test_short_calls_are_made_many_times_a_sample():
    seen: list[int] = []
    (found,) = measured([Load("x", "y", seen.append, num_bytes=8)], CPU, SHORT)
    assert found.key == {"ceiling": "x", "of": "y"}
    assert (found.flop, found.num_bytes) == (None, 8)
    # next to nothing is done: a sample is far below the millisecond that its calls take together
    assert len(seen) > 10 * found.summary.num_samples
    assert found.fastest_round < 1


def test_streams_are_larger_than_the_cache_where_memory_allows():
    assert array_bytes(2**30, None, CPU) == 2**31
    assert array_bytes(0, None, CPU) == 2**26
    assert array_bytes(2**30, 2**30, CPU) == 2**27  # an eighth of what is free


def test_one_rank_exchanges_nothing():
    assert measure_exchange(World(), CPU) == []
