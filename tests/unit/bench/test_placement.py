"""Steps and ceilings made by hand; every time is a sum in a comment."""

import msgspec
import pytest

from fastdlrm.bench.placement import (
    Least,
    bound_of,
    ceilings_of,
    place,
    split_time,
    stream_gb_s,
    times_of,
)
from fastdlrm.contracts.roofline import Ceilings, Placed
from tests.unit.bench.results import ceilings, planted, step

PEAK = 100.0


def placed(ms: float, single_ms: float = 0.0, **operators: float) -> dict[str, Placed]:
    """A step of 64 by operator, "step" among them; one of 1 takes its time in `other`."""
    times = times_of(
        [
            *step("inference", 64, ms, **operators),
            *step("inference", 1, single_ms, other=single_ms),
        ]
    )
    whole, parts = place(
        times["inference", 64], times["inference", 1], ceilings_of(ceilings()), PEAK, None
    )
    return {one.operator: one for one in (whole, *parts)}


def test_ceilings_are_the_fastest_of_each_kind():
    found = ceilings_of(ceilings())
    assert found.gflop_s == {"fp32": 100, "bf16": 200, "int8": 400}
    assert found.memory_gb_s == 12  # the triad; the copy has 10
    assert found.stream_gb_s == {10**6: pytest.approx(100), 10**9: 12}
    assert found.gather_gb_s == 5
    assert found.host_to_device_gb_s is found.all_to_all_gb_s is None
    again = msgspec.json.decode(msgspec.json.encode(found), type=Ceilings)
    assert again == found


def test_a_ceiling_is_the_median_of_the_fastest_round():
    found = planted({}, 1.0, flop=6e9)
    disturbed = msgspec.structs.replace(found, rounds=((9.0, 9.0, 0.1), (2.0, 3.0, 8.0)))
    assert disturbed.fastest_round == 3
    assert disturbed.giga_per_s == 2000  # 6e9 in 3 ms


def test_a_stream_has_the_speed_of_as_many_bytes():
    found = Ceilings(
        gflop_s={}, stream_gb_s={10: 100, 100: 50, 1000: 60, 9000: 5}, gather_gb_s=None
    )
    assert stream_gb_s(found, 1) == 100
    assert stream_gb_s(found, 99) == 100  # never too low: that of 10
    assert stream_gb_s(found, 100) == 60  # 1000 bytes cannot be faster than 100 really
    assert stream_gb_s(found, 8999) == 60
    assert stream_gb_s(found, 9000) == 5


def test_a_step_is_split_as_its_profile_says():
    key = {"operator": "x"}
    parts = {"a": planted(key, 3.0), "b": planted(key, 1.0)}
    assert split_time(planted(key, 10.0), parts) == {"a": 3, "b": 1, "between": 6}
    # the profile took twice the step's time: halves
    assert split_time(planted(key, 2.0), parts) == {"a": 1.5, "b": 0.5, "between": 0}
    nothing = {"a": planted(key, 0.0)}
    assert split_time(planted(key, 2.0), nothing) == {"a": 0, "between": 2}


def test_operators_under_their_ceilings():
    found = placed(300, fc=8, embedding_bag=2.5, interaction=250, other=1)
    fc, bags, joined = (found[name] for name in ("fc", "embedding_bag", "interaction"))
    # 4e8 FLOPs at 100 GFLOP/s, 1e6 bytes at the cache's 100 GB/s
    assert (fc.compute_ms, fc.stream_ms, fc.gather_ms) == (4, pytest.approx(0.01), 0)
    assert (fc.floor_ms, fc.share, fc.bound) == (4, 0.5, "compute")
    assert fc.intensity == 400
    # 1e7 bytes of rows at 5 GB/s, 2e6 others at 100 GB/s
    assert (bags.gather_ms, bags.stream_ms) == (2, pytest.approx(0.02))
    assert bags.share == pytest.approx(2.02 / 2.5)
    assert bags.bound == "gather"
    # 2.4e9 bytes at 12 GB/s, more than was measured; 2e8 FLOPs take 2 ms
    assert (joined.compute_ms, joined.stream_ms) == (2, 200)
    assert (joined.floor_ms, joined.bound) == (200, "memory")
    assert (found["other"].floor_ms, found["other"].bound) == (0, "uncounted")
    # 300 - 8 - 2.5 - 250 - 1
    assert (found["between"].ms, found["between"].bound) == (38.5, "overhead")


def test_a_step_is_the_sum_of_its_operators():
    found = placed(300, fc=8, embedding_bag=2.5, interaction=250, other=1)["step"]
    assert found.ms == 300
    assert found.floor_ms == pytest.approx(4 + 2.02 + 200)
    assert found.flop == 4e8 + 1e6 + 2e8
    assert found.bound == "memory"  # 250 of the 300 ms are
    assert found.share == pytest.approx(206.02 / 300)


def test_what_caches_served_is_no_floor():
    found = placed(100, fc=8, interaction=80)
    # its 2.4e9 bytes would take 200 ms from memory: they were not all moved
    assert found["interaction"].share == 2.5
    assert found["step"].floor_ms == pytest.approx(4 + 0 + 80)


def test_the_time_of_a_step_of_one_sample_is_fixed():
    found = placed(20, single_ms=9, other=10, fc=6)
    assert found["other"].fixed_ms == 9
    assert found["other"].bound == "overhead"
    assert found["fc"].fixed_ms == 0
    # of 64 samples other takes 10 ms in all: no more than these can be fixed
    assert placed(20, single_ms=19, other=10)["other"].fixed_ms == 10


def test_of_a_step_of_one_sample_all_above_its_floor_is_fixed():
    times = times_of(step("training", 1, 10, fc=8, other=2))["training", 1]
    _, parts = place(times, times, ceilings_of(ceilings()), PEAK, 5.0)
    fc = next(one for one in parts if one.operator == "fc")
    # 4e8 / 64 FLOPs take 0.0625 ms
    assert fc.fixed_ms == pytest.approx(8 - 0.0625)
    assert (fc.bound, fc.products_ms) == ("overhead", 5)


@pytest.mark.parametrize(
    ("least", "fixed_ms", "bound"),
    [
        (Least(3, 1, 1), 2.9, "compute"),
        (Least(3, 1, 1), 3.1, "overhead"),
        (Least(1, 2, 1), 0, "memory"),
        (Least(2.5, 1, 2), 0, "gather"),  # 1 + 2 is more than 2.5: bytes wait for one another
        (Least(), 5, "overhead"),
        (Least(), 4.9, "uncounted"),
    ],
)
def test_the_bound_is_what_takes_longest(least, fixed_ms, bound):
    assert bound_of(least, fixed_ms, ms=10) == bound


def test_a_model_without_tables_gathers_nothing():
    without = [m for m in ceilings() if m.key["ceiling"] != "gather"]
    assert ceilings_of(without).gather_gb_s is None
