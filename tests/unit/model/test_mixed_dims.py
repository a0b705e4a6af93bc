"""Widths by the power law, by hand; budgets against every alpha; refusals."""

import pytest

from fastdlrm.errors import ConfigError
from fastdlrm.model.mixed_dims import MixedDimsConfig, Solution, solve

ROWS = {"large": 1000, "small": 10, "middle": 160}
DIM = 16


def solved(rows: dict[str, int] = ROWS, dim: int = DIM, **config: object) -> Solution:
    return solve(MixedDimsConfig(**config), rows, dim, 4)


@pytest.mark.parametrize(
    ("config", "dims"),
    [
        # small: the fewest rows, D; middle: 16 (10 / 160)^0.5 = 4; large: 16 (10 / 1000)^0.5 = 1.6
        ({"alpha": 0.5}, (2, 16, 4)),
        ({"alpha": 0.0}, (16, 16, 16)),
        # 16 (1 / 16)^0.3 = 6.96; 16 (1 / 100)^0.3 = 4.02
        ({"alpha": 0.3}, (4, 16, 7)),
        ({"alpha": 5.0}, (1, 16, 1)),  # at least 1
        # 6.96 is nearer to 8 than to 4, by its logarithm 2.80; 2^2 = 4
        ({"alpha": 0.3, "round_to_power_of_two": True}, (4, 16, 8)),
        ({"alpha": 0.5, "threshold_rows": 160}, (2, 16, 16)),
        ({"alpha": 0.5, "threshold_rows": 1000}, (16, 16, 16)),
        # p: large 100 / 1000, small 1 / 10, middle 1 / 160
        ({"alpha": 0.5, "ids_per_sample": {"large": 100.0}}, (16, 16, 4)),
    ],
)
def test_by_hand(config: dict[str, object], dims: tuple[int, ...]) -> None:
    found = solved(**config)
    assert tuple(found.dims.values()) == dims
    assert list(found.dims) == list(ROWS)
    assert all(type(dim) is int for dim in found.dims.values())
    assert found.num_bytes == 4 * (1000 * dims[0] + 10 * dims[1] + 160 * dims[2])
    assert found.alpha == config["alpha"]


def test_no_power_of_two_is_above_the_embedding_dim() -> None:
    # 12 (9 / 10)^0.5 = 11.4, of which 16 is the nearest power of two
    rows = {"a": 9, "b": 10, "c": 1000}
    found = solved(rows, 12, alpha=0.5, round_to_power_of_two=True)
    assert found.dims == {"a": 12, "b": 12, "c": 1}


@pytest.mark.parametrize("is_power_of_two", [False, True])
def test_a_budget_takes_the_least_alpha_that_keeps_to_it(is_power_of_two: bool) -> None:
    rows = {f"t{k}": 3 + 7 * k**5 for k in range(12)}
    most = 4 * DIM * sum(rows.values())
    before = 0.0
    for share in (1.5, 1.0, 0.9, 0.5, 0.2, 0.08, 0.063):
        budget = int(most * share)
        found = solved(rows, budget_bytes=budget, round_to_power_of_two=is_power_of_two)
        assert found.num_bytes <= budget
        assert found.alpha >= before
        before = found.alpha
        same = solved(rows, alpha=found.alpha, round_to_power_of_two=is_power_of_two)
        assert same == found
        if share < 1:
            less = found.alpha * (1 - 1e-9)
            wider = solved(rows, alpha=less, round_to_power_of_two=is_power_of_two)
            assert wider.num_bytes > budget
        else:
            assert found.alpha == 0


def test_a_budget_that_cannot_be_kept_to() -> None:
    # 1000 + 160 rows of one column and 10 of 16
    assert solved(budget_bytes=4 * (1160 + 160)).dims == {"large": 1, "small": 16, "middle": 1}
    with pytest.raises(ConfigError, match=r"is 5,279: tables of 74,880 bytes can .* to 5,280;"):
        solved(budget_bytes=5279)
    equal = {"a": 10, "b": 10}
    with pytest.raises(ConfigError, match=r"tables of 1,280 bytes can be brought down to 1,280"):
        solved(equal, budget_bytes=1279)


def test_no_tables() -> None:
    assert solved({}, alpha=0.3) == Solution(0.3, {}, 0)
    assert solved({}, budget_bytes=0).dims == {}


def test_refusals() -> None:
    for config in ({}, {"alpha": 0.3, "budget_bytes": 100}):
        with pytest.raises(ConfigError, match=r"alpha is .*, budget_bytes is .*; set one"):
            MixedDimsConfig(**config)
    for alpha in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"mixed_dims.alpha is .*; 0 or more is allowed"):
            MixedDimsConfig(alpha=alpha)
    with pytest.raises(ConfigError, match=r"threshold_rows is -1; 0 or more is allowed"):
        MixedDimsConfig(alpha=0.3, threshold_rows=-1)
    with pytest.raises(ConfigError, match=r"ids_per_sample.a is 0; above 0 is allowed"):
        MixedDimsConfig(alpha=0.3, ids_per_sample={"a": 0.0})
    with pytest.raises(ConfigError, match=r"ids_per_sample.x: no such table among large, small"):
        solved(alpha=0.3, ids_per_sample={"x": 1.0})
