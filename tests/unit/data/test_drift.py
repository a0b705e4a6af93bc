"""Jensen-Shannon distance by hand, by SciPy, and its size by chance by drawing samples."""

from math import log2, sqrt

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from fastdlrm.data.drift import NUM_FREQUENT, binned, drift, id_bins


def test_by_hand():
    # p = (1/2, 1/2), q = (1, 0), mean (3/4, 1/4):
    # D(p|m) = log2(2/3) / 2 + log2(2) / 2, D(q|m) = log2(4/3); the divergence is their mean.
    divergence = ((log2(2 / 3) + 1) / 2 + log2(4 / 3)) / 2
    assert divergence == pytest.approx(0.3112781)
    found = drift(np.array([3, 3]), np.array([8, 0]))
    assert found.distance == pytest.approx(sqrt(divergence))


def test_the_same_shares_and_nothing_in_common():
    assert drift(np.array([1, 2, 0]), np.array([100, 200, 0])).distance == 0
    assert drift(np.array([5, 0]), np.array([0, 7])).distance == 1


def test_equals_scipy():
    rng = np.random.default_rng(2)
    for _ in range(20):
        p, q = rng.integers(0, 30, (2, 12))
        expected = jensenshannon(p / p.sum(), q / q.sum(), base=2)
        assert drift(p, q).distance == pytest.approx(expected)


def test_nothing_to_compare():
    assert drift(np.array([1, 2]), np.array([0, 0])) is None
    assert drift(np.array([0, 0]), np.array([1, 2])) is None


@pytest.mark.parametrize(("num_train", "num_other"), [(20_000, 20_000), (50_000, 3_000)])
def test_chance_is_the_size_of_samples_of_one_distribution(num_train, num_other):
    rng = np.random.default_rng(4)
    shares = rng.dirichlet(np.full(30, 2.0))
    found = [
        drift(rng.multinomial(num_train, shares), rng.multinomial(num_other, shares))
        for _ in range(300)
    ]
    mean_divergence = np.mean([one.distance**2 for one in found])
    assert found[0].chance ** 2 == pytest.approx(mean_divergence, rel=0.06)


def test_ids_are_binned_by_train():
    # Rows 0 and 1 and the rows that train knows have a bin each; the rest is the last bin.
    train = np.array([1, 2, 9, 0, 4, 0], np.uint32)
    rows = id_bins(train, 2)
    assert rows.tolist() == [0, 1, 2, 4]
    assert binned(np.array([1, 1, 1, 5, 1, 6], np.uint32), rows).tolist() == [1, 1, 1, 1, 11]
    assert len(id_bins(np.full(5000, 3, np.uint32), 2)) == 2 + NUM_FREQUENT
