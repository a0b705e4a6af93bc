"""Percentiles, their uncertainty, and histograms."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fastdlrm.stats import (
    Histogram,
    binomial_at_least,
    binomial_at_most,
    binomial_probabilities,
    bootstrap_interval,
    fewest_trials,
    percentile,
    percentile_interval,
    percentiles,
)


def test_a_percentile_is_one_of_the_values():
    values = np.array([30.0, 10.0, 20.0, 40.0])
    # Half of four values is two: 20 is the smallest that two do not exceed; 26 % of four needs two.
    assert percentiles(values, (25, 26, 50, 51, 99, 100)) == [10, 20, 20, 30, 40, 40]
    assert percentile(np.arange(1.0, 1001), 99.9) == 999
    assert percentile(np.arange(1.0, 1_000_001), 99.9) == 999_000
    assert percentile(np.array([1.0, np.inf]), 100) == math.inf


@pytest.mark.parametrize("level", [0, -1, 100.1])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(ValueError, match="above 0 and up to 100 is allowed"):
        percentile(np.ones(3), level)
    with pytest.raises(ValueError, match="above 0 and up to 100 is allowed"):
        Histogram().percentile(level)


def test_no_values_are_refused():
    for call in (lambda: percentile(np.empty(0), 50), lambda: percentile_interval(np.empty(0), 50)):
        with pytest.raises(ValueError, match="no values"):
            call()
    with pytest.raises(ValueError, match="no values"):
        Histogram().percentile(50)


def test_the_interval_of_a_median_is_that_of_the_tables():
    """Of ten values the 2nd and 9th hold the median in 97.9 % of cases, the 3rd and 8th in 89 %."""
    values = np.arange(1.0, 11)
    assert percentile_interval(values, 50, 0.95) == (2, 9)
    assert percentile_interval(values, 50, 0.89) == (3, 8)
    # Five values hold it with 1 - 2 / 32 = 93.75 % at most.
    assert percentile_interval(values[:5], 50, 0.95) == (-math.inf, math.inf)


def test_the_interval_of_a_percentile_holds_it_as_often_as_it_says():
    random = np.random.default_rng(1)
    true = -math.log(0.01)  # p99 of the exponential distribution
    held = 0
    for _ in range(400):
        low, high = percentile_interval(random.exponential(size=2000), 99, 0.9)
        held += low <= true <= high
    assert 0.87 * 400 < held < 0.96 * 400


def test_binomials_are_scipys():
    for num, share in ((1, 0.5), (10, 0.01), (3000, 0.05), (100_000, 0.001)):
        exact = scipy_stats.binom.pmf(np.arange(num + 1), num, share)
        assert binomial_probabilities(num, share) == pytest.approx(exact, rel=1e-6, abs=1e-12)
        count = int(num * share * 1.2)
        assert binomial_at_most(num, share, count) == pytest.approx(
            scipy_stats.binom.cdf(count, num, share), rel=1e-6
        )
        assert binomial_at_least(num, share, count) == pytest.approx(
            scipy_stats.binom.sf(count - 1, num, share), rel=1e-6
        )
    assert binomial_probabilities(3, 0.0).tolist() == [1, 0, 0, 0]
    assert binomial_probabilities(3, 1.0).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("share", "of_count"),
    [
        (0.05, {0: 90, 1: 130, 10: 398, 50: 1372}),
        (0.01, {0: 459, 1: 662, 10: 2010, 50: 6898}),
        (0.001, {0: 4603, 1: 6636, 10: 20140, 50: 69058}),
    ],
)
def test_fewest_trials_are_those_of_early_stopping(share, of_count):
    """MLPerf's mlperf.conf has 662; 459 = ceil(log 0.01 / log 0.99) by hand."""
    assert {count: fewest_trials(share, count, 0.99) for count in of_count} == of_count


def test_the_bootstrap_interval_of_a_mean():
    """Its half width is 1.96 standard errors."""
    values = np.random.default_rng(0).normal(5, 2, 2000)
    low, high = bootstrap_interval(values, lambda drawn: float(drawn.mean()), num_resamples=2000)
    error = values.std() / math.sqrt(2000)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.3 * error)
    again = bootstrap_interval(values, lambda drawn: float(drawn.mean()), num_resamples=2000)
    assert again == (low, high)


def test_blocks_keep_what_neighbours_share():
    """Each value stands ten times in a row: a tenth of them count, and the interval is sqrt(10) as
    wide."""
    values = np.repeat(np.random.default_rng(0).normal(size=400), 10)

    def width(block):
        low, high = bootstrap_interval(values, lambda drawn: float(drawn.mean()), block=block)
        return high - low

    assert width(200) / width(1) == pytest.approx(math.sqrt(10), rel=0.2)


@pytest.mark.parametrize(("num", "block"), [(0, 1), (5, 6), (5, 0)])
def test_a_block_of_more_than_there_is_is_refused(num, block):
    with pytest.raises(ValueError, match=f"block {block} of {num} values; 1 up to their number"):
        bootstrap_interval(np.ones(num), lambda drawn: 0.0, block=block)


def test_buckets_of_a_histogram():
    """Precision 1: 0, 1, 2, 3 have their own, then 4-5, 6-7, 8-11, 12-15, 16-23."""
    histogram = Histogram(precision=1)
    histogram.add(np.array([0, 3, 4, 5, 6, 11, 12, 16, 23, 24]))
    expected = [(0, 1), (3, 1), (5, 2), (7, 1), (11, 1), (15, 1), (23, 2), (31, 1)]
    assert histogram.buckets() == expected
    assert histogram.num_values == 10
    assert histogram.percentile(50) == 7
    other = Histogram(precision=1)
    other.add(np.array([5]))
    histogram.merge(other)
    assert histogram.buckets()[2] == (5, 3)


def test_a_histogram_is_exact_to_its_precision():
    values = np.random.default_rng(0).lognormal(8, 2, 100_000).astype(np.int64)
    histogram = Histogram()
    histogram.add(values)
    for level in (1, 50, 90, 99, 99.9, 100):
        exact = percentile(values.astype(np.float64), level)
        assert exact <= histogram.percentile(level) <= exact * (1 + 2**-7) + 1


def test_a_histogram_takes_every_number():
    edges = np.array([2**53 - 1, 2**53 + 1, 2**62 - 1, 2**63 - 1], np.int64)
    histogram = Histogram()
    histogram.add(edges)
    found = [last for last, _ in histogram.buckets()]
    assert all(edge <= last for edge, last in zip(edges.tolist(), found, strict=True))
    assert all(last <= edge * (1 + 2**-7) for edge, last in zip(edges.tolist(), found, strict=True))


def test_what_a_histogram_refuses():
    with pytest.raises(ValueError, match="value -1; a histogram takes 0 and more"):
        Histogram().add(np.array([3, -1]))
    with pytest.raises(ValueError, match="precision 7 and 5 do not add up"):
        Histogram().merge(Histogram(5))
