"""What batches cost is learned, and one that stalls does not spoil it."""

import random

import pytest

from fastdlrm.serve.cost import CostModel, Margin


def test_a_line_is_found():
    cost = CostModel([(1, 0.0021), (256, 0.0276)])  # 2 ms and 0.1 ms a row
    assert cost.batch_s == pytest.approx(0.002, rel=0.01)
    assert cost.row_s == pytest.approx(0.0001, rel=0.01)
    assert cost.predict_s(100) == pytest.approx(0.012, rel=0.01)


def test_it_follows_a_machine_that_slows_down():
    cost = CostModel([(1, 0.0011), (256, 0.0266)])
    random_rows = random.Random(0)
    for _ in range(200):
        rows = random_rows.randint(1, 256)
        cost.observe(rows, 0.002 + 0.0002 * rows)
    assert cost.predict_s(128) == pytest.approx(0.0276, rel=0.05)


def test_one_stall_moves_it_little():
    cost = CostModel([(1, 0.0011), (256, 0.0266)])
    for _ in range(50):
        cost.observe(100, 0.011)
    cost.observe(100, 5.0)
    assert cost.predict_s(100) < 0.0125


def test_equal_sizes_scale_the_line():
    cost = CostModel([(1, 0.0011), (256, 0.0266)])
    for _ in range(300):
        cost.observe(100, 0.022)
    assert cost.predict_s(100) == pytest.approx(0.022, rel=0.05)


def test_the_margin_covers_99_of_100():
    margin, late = Margin(), random.Random(1)
    over = 0
    for step in range(20_000):
        lateness = late.expovariate(1000)  # mean 1 ms: 99 % are below 4.6 ms
        over += step >= 10_000 and lateness > margin.seconds
        margin.observe(lateness, 0.0005)
    assert 50 < over < 200
    assert 0.003 < margin.seconds < 0.007
