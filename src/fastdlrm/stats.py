"""Percentiles, their uncertainty, and histograms of latencies.

A percentile is an order statistic: the smallest value that at least that share of the values does
not exceed. Nothing is interpolated, so a reported latency is one that was measured.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def percentiles(values: Values, levels: tuple[float, ...]) -> list[float]:
    """The values at these percentiles.

    Args:
        values: At least one; infinities are allowed, NaN is not.
        levels: Each above 0 and up to 100.

    Raises:
        ValueError: No value, or a level out of range.
    """
    for level in levels:
        _check_level(level)
    if not len(values):
        raise ValueError("no values; a percentile needs at least one")
    ordered = np.sort(values)
    return [float(ordered[_place(len(ordered), level)]) for level in levels]


def percentile(values: Values, level: float) -> float:
    """`percentiles` of one level."""
    return percentiles(values, (level,))[0]


def percentile_interval(values: Values, level: float, confidence: float = 0.95) -> Interval:
    """Between which of the values the percentile of their distribution lies.

    It holds for any distribution, but takes the values as independent: those of a queue are
    not, so that there the interval is too narrow; see `bootstrap_interval`.

    Args:
        values: At least one.
        level: Above 0 and below 100.
        confidence: Share of such intervals that hold the true percentile, at least.

    Returns:
        The end is infinite where the values are too few to bound it.

    Raises:
        ValueError: As `percentiles`.

    Source: Conover, Practical Nonparametric Statistics, 3.2.
    """
    _check_level(level)
    if not len(values):
        raise ValueError("no values; a percentile needs at least one")
    ordered = np.sort(values)
    num, share = len(ordered), level / 100
    tail = (1 - confidence) / 2
    below = np.cumsum(binomial_probabilities(num, share))
    first = int(np.searchsorted(below, tail, side="right"))  # P[Bin < first] <= tail
    last = int(np.searchsorted(below, 1 - tail, side="left")) + 1  # P[Bin >= last] <= tail
    low = float(ordered[first - 1]) if first else -math.inf
    return Interval(low, float(ordered[last - 1]) if last <= num else math.inf)


def bootstrap_interval(
    values: Values,
    statistic: Callable[[Values], float],
    *,
    confidence: float = 0.95,
    block: int = 1,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The interval in which a statistic falls when the values are drawn again.

    Args:
        values: In the order in which they came.
        statistic: Of values.
        confidence: Share of the resamples within.
        block: Values drawn together, of which the first is drawn at random and the last is followed
            by the first: 1 for independent values, more than the distance over which they depend
            on each other for those of a queue.
        num_resamples: How often.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: No value, or a block of none or of more than there are.

    Source: Politis and Romano 1992, a circular block-resampling procedure.
    """
    random = np.random.default_rng(seed)
    return _middle(_resampled(values, statistic, block, num_resamples, random), confidence)


def bootstrap_ratio_interval(
    above: Values,
    below: Values,
    statistic: Callable[[Values], float],
    *,
    confidence: float = 0.95,
    blocks: tuple[int, int] = (1, 1),
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The interval in which the ratio of a statistic of two samples falls, both drawn again.

    Args:
        above: In the order in which they came.
        below: Likewise; of another run, independent of `above`.
        statistic: Of values; not 0 of `below`.
        confidence: As `bootstrap_interval`.
        blocks: Of `above` and of `below`, as `bootstrap_interval` means them.
        num_resamples: How often.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: As `bootstrap_interval`.
    """
    random = np.random.default_rng(seed)
    upper = _resampled(above, statistic, blocks[0], num_resamples, random)
    lower = _resampled(below, statistic, blocks[1], num_resamples, random)
    return _middle(upper / lower, confidence)


def _resampled(
    values: Values,
    statistic: Callable[[Values], float],
    block: int,
    num_resamples: int,
    random: np.random.Generator,
) -> Values:
    """The statistic of values drawn again in blocks, so many times."""
    num = len(values)
    if not num or not 1 <= block <= num:
        raise ValueError(f"block {block} of {num} values; 1 up to their number is allowed")
    around = np.concatenate([values, values[: block - 1]])
    offsets = np.arange(block)
    found = np.empty(num_resamples)
    for index in range(num_resamples):
        starts = random.integers(0, num, -(-num // block))
        found[index] = statistic(around[(starts[:, None] + offsets).reshape(-1)[:num]])
    return found


def _middle(found: Values, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    return Interval(float(np.quantile(found, tail)), float(np.quantile(found, 1 - tail)))


@cache
def _small_log_factorials() -> Values:
    return np.array([math.lgamma(k + 1) for k in range(256)])


def _log_factorial(k: NDArray[np.int64]) -> Values:
    """log k!, by Stirling's series where k is large: exact to 1e-14 of it."""
    small = _small_log_factorials()
    x = np.maximum(k, len(small)).astype(np.float64)
    series = 1 / (12 * x) - 1 / (360 * x**3) + 1 / (1260 * x**5)
    large = x * np.log(x) - x + 0.5 * np.log(2 * np.pi * x) + series
    found: Values = np.where(k < len(small), small[np.minimum(k, len(small) - 1)], large)
    return found


def binomial_probabilities(
    num: int, share: float, first: int = 0, last: int | None = None
) -> Values:
    """P[Bin(num, share) = k] of k = first..last, all where there is none."""
    k = np.arange(first, (num if last is None else last) + 1)
    if share in (0.0, 1.0):
        return (k == round(share) * num).astype(np.float64)
    logs = _log_factorial(np.array([num]))[0] - _log_factorial(k) - _log_factorial(num - k)
    probabilities: Values = np.exp(logs + k * math.log(share) + (num - k) * math.log1p(-share))
    return probabilities


def binomial_at_most(num: int, share: float, count: int) -> float:
    """P[Bin(num, share) <= count]."""
    return float(min(1.0, binomial_probabilities(num, share, 0, min(count, num)).sum()))


def binomial_at_least(num: int, share: float, count: int) -> float:
    """P[Bin(num, share) >= count]."""
    return float(min(1.0, binomial_probabilities(num, share, max(count, 0)).sum()))


def fewest_trials(share: float, count: int, confidence: float) -> int:
    """The fewest trials of which `count` successes show that they are rarer than `share`.

    Args:
        share: Of successes, above 0 and below 1.
        count: Successes found.
        confidence: With which it is shown.

    Returns:
        The smallest n with P[Bin(n, share) <= count] <= 1 - confidence.

    Source: MLPerf inference rules, early stopping.
    """
    low, high = count, int(count / share) + 1
    while binomial_at_most(high, share, count) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_at_most(middle, share, count) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


class Histogram:
    """Counts of positive values in buckets as wide as a fixed share of their value.

    Each power of two is cut into `2**precision` buckets of one width, so that a bucket is at most
    2**-precision of its values wide; values are whole numbers of a unit, those below
    2**(precision + 1) have a bucket each. Histograms of one precision add up.

    Args:
        precision: 5 gives 3 %, 7 gives 0.8 %.

    Source: HdrHistogram (Gil Tene).
    """

    def __init__(self, precision: int = 7) -> None:
        self._precision = precision
        self.counts: NDArray[np.int64] = np.zeros((64 - precision) << precision, np.int64)

    def add(self, values: NDArray[np.int64]) -> None:
        """Count values.

        Args:
            values: 0 or more each, in the histogram's unit.

        Raises:
            ValueError: A negative value.
        """
        if len(values) and values.min() < 0:
            raise ValueError(f"value {values.min()}; a histogram takes 0 and more")
        # Two steps: the conversion to float64 may round a value up to the next power of two.
        exponents = np.frexp(values.astype(np.float64))[1] - 1
        exponents -= (values >> np.maximum(exponents, 0)) == 0
        shifts = np.maximum(exponents - self._precision, 0)
        places = (shifts.astype(np.int64) << self._precision) + (values >> shifts)
        self.counts += np.bincount(places, minlength=len(self.counts))

    def merge(self, other: "Histogram") -> None:
        """Add another's counts.

        Raises:
            ValueError: It has another precision.
        """
        if other._precision != self._precision:
            raise ValueError(
                f"histograms of precision {self._precision} and {other._precision} do not add up"
            )
        self.counts += other.counts

    @property
    def num_values(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    def percentile(self, level: float) -> int:
        """Largest value of the bucket that holds this percentile.

        Raises:
            ValueError: No value was counted, or the level is out of range.
        """
        _check_level(level)
        num = self.num_values
        if not num:
            raise ValueError("no values; a percentile needs at least one")
        return self._last(int(np.searchsorted(np.cumsum(self.counts), _place(num, level) + 1)))

    def buckets(self) -> list[tuple[int, int]]:
        """Largest value and count of each bucket that holds any, ascending."""
        return [(self._last(int(place)), int(self.counts[place])) for place in self._used()]

    def _used(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.counts)

    def _last(self, place: int) -> int:
        shift = max((place >> self._precision) - 1, 0)
        return ((place - (shift << self._precision) + 1) << shift) - 1


def _place(num: int, level: float) -> int:
    """Place of a percentile among `num` ordered values; a level such as 99.9 is not exact."""
    return max(math.ceil(num * level / 100 - 1e-9 * num) - 1, 0)


def _check_level(level: float) -> None:
    if not 0 < level <= 100:
        raise ValueError(f"percentile {level}; above 0 and up to 100 is allowed")
