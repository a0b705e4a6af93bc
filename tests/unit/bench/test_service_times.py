"""The rate that computing alone bounds."""

import numpy as np
import pytest

from fastdlrm.bench.service_times import ceiling_qps


def test_ceiling_of_whole_queries():
    """A query of 100 takes 10 ms: 200/s on two workers."""
    assert ceiling_qps({1: 1.0, 100: 10.0}, np.array([100]), 100, 2) == pytest.approx(200)


def test_ceiling_of_parts():
    """101 samples in parts of at most 50: three of 33.67, 1 + 32.67 / 99 x 9 = 3.97 ms each."""
    found = ceiling_qps({1: 1.0, 100: 10.0}, np.array([101]), 50, 1)
    assert found == pytest.approx(1000 / (3 * (1 + (101 / 3 - 1) / 99 * 9)))


def test_ceiling_is_of_the_mean_query():
    """10 ms and 2 ms, equally often: 6 ms, not the mean of the rates."""
    sizes = np.array([10, 50])
    assert ceiling_qps({10: 2.0, 50: 10.0}, sizes, 64, 3) == pytest.approx(500)
