"""Schedules: the law they follow, and the flaw of the reference's that they have not."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fastdlrm.errors import ConfigError
from fastdlrm.load.arrivals import arrival_times, read_trace


def gaps_of(law, rate, duration_s=200.0, seed=1):
    times = arrival_times(law, rate, duration_s, seed)
    return np.diff(times, prepend=0.0)


@pytest.mark.parametrize("rate", [5.0, 200.0])
@pytest.mark.parametrize("seed", range(3))
def test_exponential_gaps_are_exponential(rate, seed):
    gaps = gaps_of("exponential", rate, 10_000 / rate, seed)
    assert scipy_stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue > 0.01
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.04)


def test_counts_of_exponential_arrivals_are_those_of_a_poisson_process():
    """Variance of the count in a window = its mean, and windows do not depend on each other."""
    times = arrival_times("exponential", 50, 2000, 3)
    counts = np.bincount(times.astype(int), minlength=2000)
    assert counts.mean() == pytest.approx(50, rel=0.02)
    assert counts.var() == pytest.approx(50, rel=0.1)
    assert abs(np.corrcoef(counts[1:], counts[:-1])[0, 1]) < 0.06


def test_the_references_arrivals_are_smoother_than_poisson():
    """Whole milliseconds, CV = 1 / sqrt(mean gap in ms): 0.447 at 5 ms, 1 in a Poisson process.
    The default must not be that."""
    gaps = gaps_of("reference_poisson_ms", 200)
    assert np.rint(gaps * 1000) == pytest.approx(gaps * 1000, abs=1e-6)
    assert gaps.std() / gaps.mean() == pytest.approx(0.447, abs=0.02)
    assert scipy_stats.kstest(gaps, "expon", args=(0, 0.005)).pvalue < 1e-6
    ours = gaps_of("exponential", 200) * 1000
    assert np.abs(np.rint(ours) - ours).mean() == pytest.approx(0.25, abs=0.02)


def test_uniform_gaps_are_equal():
    assert arrival_times("uniform", 4, 1.0, 0).tolist() == [0, 0.25, 0.5, 0.75]
    assert len(arrival_times("uniform", 4, 1.1, 0)) == 5


@pytest.mark.parametrize("law", ["exponential", "reference_poisson_ms"])
def test_a_schedule_is_its_seeds(law):
    first, again, other = (arrival_times(law, 90, 20, seed) for seed in (5, 5, 6))
    assert first.tolist() == again.tolist() != other.tolist()
    assert (np.diff(first) >= 0).all()
    assert first[-1] < 20
    assert len(first) == pytest.approx(1800, abs=6 * 1800**0.5)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ConfigError, match="rate 0/s for 1 s; both must be above 0"):
        arrival_times("exponential", 0, 1, 0)
    with pytest.raises(ConfigError, match="whole milliseconds reach 1000/s; use exponential"):
        arrival_times("reference_poisson_ms", 1001, 1, 0)
    with pytest.raises(ConfigError, match="the times of a trace are read, not drawn"):
        arrival_times("trace", 1, 1, 0)


def test_a_trace_begins_with_its_first_arrival(tmp_path):
    path = tmp_path / "trace"
    path.write_text("# time size\n10.0 3\n10.5 4\n\n12.0 5\n")
    times, sizes = read_trace(path)
    assert times.tolist() == [0, 0.5, 2]
    assert sizes.tolist() == [3, 4, 5]
    # Two gaps in 2 s are 1/s; at 4/s they take half a second.
    assert read_trace(path, 4)[0].tolist() == [0, 0.125, 0.5]
    path.write_text("0\n1\n")
    assert read_trace(path)[1] is None


@pytest.mark.parametrize(
    ("text", "rate", "message"),
    [
        ("", None, "no times; expected one a line"),
        ("1\nx\n", None, "line 2: 'x'; expected a time in seconds"),
        ("1 2.5\n", None, "line 1: '1 2.5'; expected a time"),
        ("1 5\n2\n", None, "line 2: '2'; every line has a size of 1 and more, or none has"),
        ("1 0\n", None, "every line has a size of 1 and more"),
        ("2\n1\n", None, "line 2: 1 s after 2 s; sort the times"),
        ("1\nnan\n", None, "sort the times"),
        ("1\n1\n", 5, "all times are the same; a rate cannot stretch them"),
    ],
)
def test_a_wrong_trace_is_refused(text, rate, message, tmp_path):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(path, rate)
