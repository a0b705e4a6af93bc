"""What batches cost: a line, learned and unlearned."""

import random

import pytest

from fastdlrm.serve.cost import CostModel, Margin


def test_a_line_through_measured_batches():
    cost = CostModel([(1, 0.0011), (101, 0.0111)])  # 1 ms + 0.1 ms a row
    assert cost.batch_s == pytest.approx(0.001)
    assert cost.row_s == pytest.approx(0.0001)
    assert cost.predict_s(51) == pytest.approx(0.0061)


def test_nothing_measured_learns_from_the_first_batch():
    cost = CostModel()
    cost.observe(10, 0.02)
    assert cost.predict_s(10) == pytest.approx(0.02)


def test_a_slope_is_never_negative():
    cost = CostModel([(1, 0.02), (100, 0.01)])
    assert cost.row_s == 0.0
    assert 0.01 < cost.batch_s < 0.02


def test_an_offset_is_never_negative():
    cost = CostModel([(10, 0.001), (100, 0.1)])
    assert cost.batch_s == 0.0
    assert cost.row_s > 0


def test_it_follows_a_machine_that_slows_down():
    draw = random.Random(1)
    cost = CostModel([(1, 0.001), (200, 0.011)])
    for _ in range(300):
        rows = draw.randint(1, 200)
        cost.observe(rows, 0.004 + rows * 0.0002)
    assert cost.batch_s == pytest.approx(0.004, rel=0.05)
    assert cost.row_s == pytest.approx(0.0002, rel=0.05)


def test_batches_of_one_size_scale_the_line():
    cost = CostModel([(1, 0.0011), (101, 0.0111)])
    for _ in range(400):
        cost.observe(51, 2 * 0.0061)
    assert cost.predict_s(51) == pytest.approx(0.0122, rel=0.02)
    assert cost.predict_s(1) < cost.predict_s(51) < cost.predict_s(101)


def test_one_stall_moves_it_little():
    cost = CostModel([(1, 0.001), (100, 0.001)])
    cost.observe(50, 60.0)
    assert cost.predict_s(50) < 0.0015  # 3 % of four times 1 ms


def test_a_margin_is_passed_by_one_in_a_hundred():
    draw = random.Random(2)
    margin = Margin()
    missed = 0
    for count in range(40_000):
        late_s = draw.gauss(0.0, 0.002)
        missed += count >= 10_000 and late_s > margin.seconds
        margin.observe(late_s, 0.001)
    assert missed / 30_000 == pytest.approx(0.01, rel=0.3)


def test_a_margin_is_never_negative():
    margin = Margin()
    for _ in range(1000):
        margin.observe(-1.0, 0.001)
    assert margin.seconds == 0.0
