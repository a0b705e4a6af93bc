"""Quantiles and moments against numpy on the whole column."""

import numpy as np
import pytest

from fastdlrm.data.distribution import (
    BLOCK_VALUES,
    QUANTILES,
    counts_between,
    distribution,
    quantiles_of,
)

RNG = np.random.default_rng(5)
COLUMNS = {
    "normal": RNG.normal(0, 3, BLOCK_VALUES + 77),
    "counts": np.log1p(RNG.geometric(0.1, 5000)),
    "mostly zero": np.where(RNG.random(4000) < 0.97, 0, RNG.normal(0, 1, 4000)),
    "extremes": np.array([3e38, -3e38, 1e-40, -1e-40, 0.0, -0.0, 1.5, -1.5]),
    "one": np.array([-2.5]),
    "far from zero": 1e7 + RNG.integers(0, 5, 3000),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("num_parts", [1, 3])
def test_equals_numpy(name, num_parts):
    whole = COLUMNS[name].astype(np.float32)
    found = distribution(np.array_split(whole, num_parts))
    exact = whole.astype(np.float64)
    assert found.num_values == len(whole)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12, abs=1e-12)
    assert found.std == pytest.approx(exact.std(), rel=1e-9)
    assert (found.minimum, found.maximum) == (exact.min(), exact.max())
    expected = np.quantile(exact, QUANTILES, method="inverted_cdf")
    assert list(found.quantiles) == expected.tolist()


def test_quantiles_by_hand():
    # Ten values: 3 of 10 do not exceed the third, so 0.3 gives it and 0.31 the fourth.
    column = [np.array([9, 1, 8, 2, 7], np.float32), np.array([3, 6, 4, 5, 10], np.float32)]
    assert quantiles_of(column, (0, 0.1, 0.3, 0.31, 1)) == [1, 1, 3, 4, 10]


def test_minus_zero_is_zero():
    low, high = quantiles_of([np.array([-0.0, 0.0], np.float32)], (0, 1))
    assert (np.signbit(low), np.signbit(high)) == (False, False)


def test_bins_hold_their_upper_edge():
    column = [np.array([0, 1, 1, 1.5], np.float32), np.array([2, 5], np.float32)]
    assert counts_between(column, np.array([1, 2], np.float32)).tolist() == [3, 2, 1]
    assert counts_between(column, np.array([], np.float32)).tolist() == [6]


@pytest.mark.parametrize("name", COLUMNS)
def test_bins_equal_numpy(name):
    whole = COLUMNS[name].astype(np.float32)
    edges = np.unique(np.append(np.quantile(whole, np.linspace(0.05, 0.95, 30)), 0))
    edges = np.unique(edges.astype(np.float32))
    expected = np.bincount(np.searchsorted(edges, whole), minlength=len(edges) + 1)
    found = counts_between(np.array_split(whole, 3), edges)
    assert found.tolist() == expected.tolist()
    assert counts_between([whole], np.array([-0.0], np.float32))[0] == (whole <= 0).sum()
