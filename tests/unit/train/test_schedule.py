"""Learning-rate factors worked by hand."""

import pytest

from fastdlrm.train.config import ScheduleConfig
from fastdlrm.train.schedule import factor, learning_rate

POLYNOMIAL = ScheduleConfig(name="polynomial", warmup_steps=4, decay_start_step=6, decay_steps=4)


def test_constant() -> None:
    config = ScheduleConfig(name="constant")
    assert [factor(config, step) for step in (0, 1, 10**9)] == [1, 1, 1]


@pytest.mark.parametrize(
    "config",
    [ScheduleConfig(name="constant", warmup_steps=4), POLYNOMIAL],
    ids=["constant", "polynomial"],
)
def test_warmup_is_linear_and_reaches_one(config: ScheduleConfig) -> None:
    # 1/4, 2/4, 3/4, 4/4, then 1
    assert [factor(config, step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_step_is_a_stair() -> None:
    config = ScheduleConfig(name="step", decay_steps=3, gamma=0.5)
    found = [factor(config, step) for step in range(8)]
    assert found == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_warmup_multiplies_the_stairs() -> None:
    config = ScheduleConfig(name="step", warmup_steps=4, decay_steps=2, gamma=0.5)
    # warm-up 1/4 1/2 3/4 1 1 times stairs 1 1 1/2 1/2 1/4
    assert [factor(config, step) for step in range(5)] == [0.25, 0.5, 0.375, 0.5, 0.25]


def test_polynomial_decays_quadratically_and_freezes() -> None:
    # Steps are numbered n = 1, 2, ...; k = n - 6: ((4 - k) / 4)^2 = 1, 9/16, 4/16, 1/16, frozen
    found = [factor(POLYNOMIAL, step) for step in range(4, 12)]
    assert found == [1, 1, 9 / 16, 4 / 16, 1 / 16, 1 / 16, 1 / 16, 1 / 16]


def test_polynomial_decay_from_the_first_step() -> None:
    config = ScheduleConfig(name="polynomial", decay_start_step=0, decay_steps=2)
    # n = 1: k = 1: (1/2)^2
    assert [factor(config, step) for step in range(3)] == [0.25, 0.25, 0.25]


def test_learning_rate_is_base_times_factor() -> None:
    assert learning_rate(POLYNOMIAL, 0.5, 6) == 0.5 * 9 / 16
    assert learning_rate(POLYNOMIAL, 0.5, 1) == 0.5 * 0.5


def test_polynomial_stops_at_the_floor() -> None:
    config = ScheduleConfig(name="polynomial", decay_start_step=0, decay_steps=1000)
    # (1/1000)^2 * 0.01 = 1e-8 would be below 1e-7
    assert learning_rate(config, 0.01, 5000) == 1e-7
    # (500/1000)^2 * 0.01, above
    assert learning_rate(config, 0.01, 499) == pytest.approx(0.0025)


def test_the_floor_neither_raises_a_smaller_base_nor_the_warmup() -> None:
    assert learning_rate(POLYNOMIAL, 1e-9, 100) == 1e-9
    assert learning_rate(POLYNOMIAL, 2e-7, 0) == pytest.approx(0.5e-7)
