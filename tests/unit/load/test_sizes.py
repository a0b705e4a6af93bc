"""Query sizes: what each distribution gives."""

import numpy as np
import pytest

from fastdlrm.errors import ConfigError
from fastdlrm.load.sizes import check_sizes, mean_size, query_sizes


@pytest.mark.parametrize(
    ("name", "mean", "p99", "cv_squared", "top_share"),
    [
        ("production", 270, 700, 0.33, 0.46),
        ("lognormal", 167, 261, 0.04, 0.32),
        ("normal", 165, 202, 0.01, 0.28),
        ("heavy", 136, 638, 0.82, 0.55),
    ],
)
def test_moments(name, mean, p99, cv_squared, top_share):
    sizes = query_sizes(name, 400_000, 0)
    assert sizes.mean() == pytest.approx(mean, rel=0.01)
    assert np.quantile(sizes, 0.99) == pytest.approx(p99, rel=0.02)
    assert sizes.var() / sizes.mean() ** 2 == pytest.approx(cv_squared, abs=0.01)
    largest = np.sort(sizes)[-100_000:].sum() / sizes.sum()
    assert largest == pytest.approx(top_share, abs=0.01)
    assert mean_size(name) == pytest.approx(mean, rel=0.01)


def test_production_is_mlperfs_twenty_quantiles():
    """100 x 2, 200 x 12, 300 x 2, 400, 500, 600, 700: mean 5400 / 20 = 270."""
    values, counts = np.unique(query_sizes("production", 200_000, 1), return_counts=True)
    assert values.tolist() == [100, 200, 300, 400, 500, 600, 700]
    expected = np.array([2, 12, 2, 1, 1, 1, 1]) / 20
    assert counts / 200_000 == pytest.approx(expected, abs=0.003)


def test_sizes_are_clipped():
    assert set(query_sizes("lognormal:9,1,50", 1000, 0).tolist()) <= set(range(1, 51))
    assert query_sizes("normal:-5,1,50", 100, 0).tolist() == [1] * 100
    assert query_sizes("normal:256,32", 100_000, 0).mean() == pytest.approx(256, rel=0.01)


def test_fixed_and_file(tmp_path):
    assert query_sizes("fixed:7", 3, 0).tolist() == [7, 7, 7]
    path = tmp_path / "sizes"
    path.write_text("3\n9\n\n9\n9\n")
    drawn = query_sizes(f"file:{path}", 40_000, 0)
    assert (drawn == 9).mean() == pytest.approx(0.75, abs=0.01)


def test_sizes_are_their_seeds():
    assert query_sizes("heavy", 50, 1).tolist() == query_sizes("heavy", 50, 1).tolist()
    assert query_sizes("heavy", 50, 1).tolist() != query_sizes("heavy", 50, 2).tolist()


@pytest.mark.parametrize(
    "name",
    ["", "big", "fixed", "fixed:0", "fixed:1.5", "fixed:²", "production:5", "heavy:1,2,0"],
)
def test_unknown_sizes_are_refused(name):
    with pytest.raises(ConfigError, match=r"sizes '.*': production, lognormal\[:MU,SIGMA"):
        check_sizes(name)


@pytest.mark.parametrize(
    "name", ["normal:1", "normal:a,b", "normal:1,-1", "normal:1,2,3,4", "lognormal:nan,1"]
)
def test_wrong_parameters_of_sizes_are_refused(name):
    with pytest.raises(ConfigError, match=r"sizes '.*': production, lognormal\[:MU,SIGMA"):
        check_sizes(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no sizes; expected one a line"), ("5\n-1\n", "line 2: '-1'; expect")],
)
def test_a_wrong_file_of_sizes_is_refused(text, message, tmp_path):
    path = tmp_path / "sizes"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        query_sizes(f"file:{path}", 1, 0)
