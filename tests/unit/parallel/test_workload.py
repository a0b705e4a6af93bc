"""Ids of a step by hand: how many fall in a run of rows, and how many rows are different."""

import math

import numpy as np
import pytest

from fastdlrm.parallel.workload import Feature, Traffic
from tests.oracles import different_rows
from tests.unit.parallel.machines import workload


def between(traffic: Traffic, first: int, stop: int) -> tuple[float, float]:
    ids, seen = traffic.between(np.array([float(first)]), np.array([float(stop)]))
    return float(ids[0]), float(seen[0])


def test_even_ids() -> None:
    traffic = Traffic([Feature(table="a", ids_per_sample=3.0)], 10, 20)
    # 60 ids, 6 a row
    assert between(traffic, 0, 10) == pytest.approx((60, 10 * (1 - math.exp(-6))))
    assert between(traffic, 2, 5) == pytest.approx((18, 3 * (1 - math.exp(-6))))
    assert between(traffic, 4, 4) == (0, 0)


def test_skewed_ids() -> None:
    # rows 0; 1, 2; 3 .. 6; 7: 8 ids of 10, none, 2, none
    traffic = Traffic([Feature(table="a", shares=(0.8, 0.0, 0.2))], 8, 10)
    assert between(traffic, 0, 1) == pytest.approx((8, 1 - math.exp(-8)))
    assert between(traffic, 1, 3) == (0, 0)
    assert between(traffic, 3, 5) == pytest.approx((1, 2 * (1 - math.exp(-0.5))))
    assert between(traffic, 7, 8) == (0, 0)


def test_features_of_one_table_see_its_rows_together() -> None:
    features = [Feature(table="a"), Feature(table="a", ids_per_sample=2.0)]
    assert between(Traffic(features, 4, 4), 0, 4) == pytest.approx((12, 4 * (1 - math.exp(-3))))


def test_a_table_nobody_reads() -> None:
    assert between(Traffic([], 4, 100), 0, 4) == (0, 0)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 1000])
def test_different_rows_are_those_of_drawn_ids(num_rows: int) -> None:
    """Against ids that are drawn, 200 times."""
    found = different_rows(num_rows, 500, 200)
    expected = between(Traffic([Feature(table="a")], num_rows, 500), 0, num_rows)[1]
    assert expected == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "dtype", "size"),
    [
        ("fp32", "auto", 4),
        ("tf32", "auto", 4),
        ("bf16", "auto", 2),
        ("bf16", "fp32", 4),
        ("fp32", "bf16", 2),
    ],
)
def test_numbers_on_their_way(precision: str, dtype: str, size: int) -> None:
    changed = workload(precision=precision, exchange_dtype=dtype)
    assert changed.exchange_bytes == size
