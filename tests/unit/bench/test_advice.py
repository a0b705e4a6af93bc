"""The rule's choice on steps made by hand."""

import pytest

from fastdlrm.bench.advice import Faster, advise, faster_type, largest_part
from fastdlrm.bench.placement import ceilings_of
from fastdlrm.contracts.roofline import Placed
from tests.unit.bench.results import ceilings

NONE = Faster("fp32", 1.0)


def operator(name: str, ms: float, floor_ms: float, **more: object) -> Placed:
    fields = {
        "operator": name,
        "ms": ms,
        "flop": 1.0,
        "num_bytes": 1.0,
        "compute_ms": floor_ms,
        "stream_ms": 0.0,
        "gather_ms": 0.0,
        "fixed_ms": 0.0,
        "products_ms": None,
        "floor_ms": floor_ms,
        "bound": "compute",
    }
    return Placed(**(fields | more))


def advised(*operators: Placed, faster: Faster = NONE, on_gpu: bool = False):
    ms = sum(one.ms for one in operators)
    floor = sum(min(one.floor_ms, one.ms) for one in operators)
    whole = operator("step", ms, floor)
    return advise(whole, operators, faster=faster, on_gpu=on_gpu)


def test_most_time_above_the_floor_comes_first():
    # fc is 2 ms above its floor, the lookup 3, though fc takes longer
    found = advised(operator("fc", 6, 4), operator("embedding_bag", 4, 1))
    assert (found.operator, found.saved_ms) == ("embedding_bag", 3)
    assert found.speedup == pytest.approx(10 / 7)
    assert found.sentence.startswith("embedding_bag takes 4 of the step's 10 ms, its floor is 1 ms")
    assert found.sentence.endswith("At its floor the step would take 7 ms, 1.43 times as fast.")


def test_an_operator_that_caches_serve_has_nothing_to_gain():
    found = advised(operator("embedding_bag", 4, 9), operator("fc", 4, 3), operator("other", 2, 0))
    assert (found.operator, found.saved_ms) == ("other", 2)


def test_what_the_time_is_decides_what_to_do():
    # 6 ms above the floor: products alone take 3 of them, 2 are fixed, 1 is left
    slow = operator("fc", 8, 2, products_ms=5.0, fixed_ms=2.0)
    assert largest_part(slow, "").ms == 3
    assert "even alone are slower at these shapes" in largest_part(slow, "").help
    fixed = operator("fc", 8, 2, products_ms=2.5, fixed_ms=5.0)
    assert largest_part(fixed, "a graph").ms == 5
    assert "however few its samples: larger batches share it, a graph" in (
        largest_part(fixed, "a graph").help
    )
    rest = operator("fc", 8, 2, products_ms=2.5, fixed_ms=1.0)
    assert largest_part(rest, "").ms == 4.5
    assert "beside its products" in largest_part(rest, "").help


def test_products_alone_take_no_more_than_there_is():
    # they were measured at 20 ms, on a busier machine: 6 ms are above the floor
    assert largest_part(operator("fc", 8, 2, products_ms=20.0, fixed_ms=5.0), "").ms == 6


@pytest.mark.parametrize(
    ("on_gpu", "text"), [(True, "a CUDA graph"), (False, "a compiled program")]
)
def test_fewer_calls_are_advised_by_the_device(on_gpu, text):
    found = advised(operator("between", 9, 0), operator("fc", 1, 1), on_gpu=on_gpu)
    assert found.operator == "between"
    assert f"Python and the start of calls: {text}. At its floor" in found.sentence
    assert found.speedup == pytest.approx(10)


def test_a_step_at_its_floor_can_only_have_less_to_do():
    operators = operator("fc", 6, 5.5), operator("embedding_bag", 4, 4, compute_ms=0, gather_ms=4.0)
    found = advised(*operators, faster=Faster("bf16", 2.0))
    assert (found.operator, found.saved_ms) == ("fc", 2.75)  # 5.5 ms at twice the speed
    assert found.sentence == (
        "the step attains 95% of its floor, so only less work helps; 5.5 ms of it are fc's FLOPs: "
        "narrower layers have fewer, and bf16 multiplies 2 times as fast here. In bf16 the step "
        "would take 7.25 ms, 1.38 times as fast."
    )
    half = advised(*operators, faster=Faster("bf16", 1.05))
    assert half.saved_ms == 2.75
    assert "bf16" not in half.sentence
    assert "narrower layers have fewer. With half of it the step" in half.sentence


@pytest.mark.parametrize(
    ("bytes_of", "text"),
    [
        ({"stream_ms": 1.0, "gather_ms": 4.0}, "embedding_bag's rows: fewer ids"),
        ({"stream_ms": 4.0, "gather_ms": 1.0}, "embedding_bag's bytes: a narrower train.precision"),
    ],
)
def test_at_the_floor_fewer_bytes_help_where_bytes_bind(bytes_of, text):
    found = advised(operator("embedding_bag", 5, 5, compute_ms=0.1, **bytes_of))
    assert text in found.sentence
    assert found.saved_ms == 2.5
    assert "caches" not in found.sentence


def test_at_a_floor_that_caches_beat_it_is_said():
    found = advised(operator("embedding_bag", 4, 8, compute_ms=0.1, gather_ms=8.0))
    assert "4 ms of it are" in found.sentence
    assert "caches serve it faster than its ceiling already" in found.sentence
    assert found.saved_ms == 2


def test_a_faster_type_is_one_that_may_take_the_place():
    machine = ceilings_of(ceilings())
    assert faster_type(machine, ["fp32"], ["fp32", "bf16", "int8"]) == Faster("int8", 4)
    assert faster_type(machine, ["fp32"], ["fp32", "bf16"]) == Faster("bf16", 2)
    assert faster_type(machine, ["bf16", "fp32"], ["fp32", "bf16"]) == Faster("bf16", 1)
