"""Counters and histograms as cheap as a list's entry, read by prometheus_client at a scrape.

The library's own take a lock and some microseconds an observation; a request has about ten of them.
Invariant: one thread alone, that of the event loop, writes and reads them.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counter:
    """A number that only grows; write `value` itself."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Histogram:
    """Counts of observations by upper bound.

    Args:
        bounds: Upper bounds, ascending; above the last lies one more bucket.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """By upper bound as text, the observations at or below it."""
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        pairs, reached = [], 0
        for name, count in zip(names, self.counts, strict=True):
            reached += count
            pairs.append((name, float(reached)))
        return pairs


InstrumentT = TypeVar("InstrumentT", Counter, Histogram)


class Family(Collector, Generic[InstrumentT]):
    """All instruments of one name, one a set of labels.

    Args:
        name: As Prometheus shows it, without the "_total" of a counter.
        text: What it counts.
        labels: Names of the labels.
        make: Makes an instrument.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], make: Callable[[], InstrumentT]
    ) -> None:
        self.name = name
        self.text = text
        self._label_names = tuple(labels)
        self._make: Callable[[], InstrumentT] = make
        self._children: dict[tuple[str, ...], InstrumentT] = {}

    def labels(self, *values: str) -> InstrumentT:
        """The instrument of these labels' values, made when first asked for: keep it."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def items(self) -> list[tuple[tuple[str, ...], InstrumentT]]:
        """All instruments by their labels' values."""
        return list(self._children.items())

    def describe(self) -> Iterator[Metric]:
        """The name, without values: what registration asks for."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """What a scrape reads."""
        family = self._family()
        for values, child in self._children.items():
            if isinstance(family, HistogramMetricFamily):
                assert isinstance(child, Histogram)
                family.add_metric(values, child.cumulative(), child.total)
            else:
                assert isinstance(child, Counter)
                family.add_metric(values, child.value)
        yield family

    def _family(self) -> CounterMetricFamily | HistogramMetricFamily:
        kind = HistogramMetricFamily if isinstance(self._make(), Histogram) else CounterMetricFamily
        return kind(self.name, self.text, labels=self._label_names)


def counters(name: str, text: str, *labels: str) -> Family[Counter]:
    """A family of counters."""
    return Family(name, text, labels, Counter)


def histograms(name: str, text: str, bounds: Sequence[float], *labels: str) -> Family[Histogram]:
    """A family of histograms with the same bounds."""
    return Family(name, text, labels, lambda: Histogram(bounds))
