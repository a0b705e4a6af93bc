"""What a batch costs and how far such a prediction is off: learned while serving.

A batch of n rows takes a + b * n seconds. Both are fitted by least squares whose weights fade with
every batch, so a machine that slows down is noticed after some tens of batches. Invariants: a and b
are never negative; one batch, however slow, moves the line by a bounded amount.
"""

from collections.abc import Sequence

FADING = 0.97
"""Weight of the past at each new batch: half of it is gone after 23."""
MEASURED_WEIGHT = 20
"""Batches that those measured before any other stand for, however few they are."""
MAX_SURPRISE = 4.0
"""An observation counts as at most so many times what was predicted: a stall is not the rule."""
MIN_SPREAD = 0.01
"""Variance of batch sizes, in units of their mean squared, below which no slope can be told."""
MIN_COST_S = 1e-6


class CostModel:
    """Seconds a batch takes, as a line in its rows.

    Args:
        measured: Batches measured before there is any other: rows, and seconds of each.
    """

    def __init__(self, measured: Sequence[tuple[int, float]] = ()) -> None:
        self._batch_s = 0.0
        self._row_s = MIN_COST_S
        self._rows = self._seconds = self._spread = self._joint = 0.0
        self._count = 0
        for rows, seconds in measured:
            self._add(float(rows), seconds)
        if measured:
            self._fit()
            self._count = max(self._count, MEASURED_WEIGHT)

    @property
    def batch_s(self) -> float:
        """Seconds of a batch however few its rows, a."""
        return self._batch_s

    @property
    def row_s(self) -> float:
        """Seconds of each row, b."""
        return self._row_s

    def predict_s(self, num_rows: int) -> float:
        """Seconds of a batch of `num_rows`."""
        return self._batch_s + self._row_s * num_rows

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learn from a batch that was computed."""
        if self._count:
            expected = max(self.predict_s(num_rows), MIN_COST_S)
            seconds = min(max(seconds, expected / MAX_SURPRISE), expected * MAX_SURPRISE)
        self._add(float(num_rows), seconds)
        self._fit()

    def _add(self, rows: float, seconds: float) -> None:
        self._count += 1
        share = max(1 - FADING, 1 / self._count)
        off_rows, off_seconds = rows - self._rows, seconds - self._seconds
        self._rows += share * off_rows
        self._seconds += share * off_seconds
        self._spread = (1 - share) * (self._spread + share * off_rows * off_rows)
        self._joint = (1 - share) * (self._joint + share * off_rows * off_seconds)

    def _fit(self) -> None:
        if self._spread > MIN_SPREAD * self._rows * self._rows:
            slope = max(self._joint / self._spread, 0.0)
            self._batch_s = max(self._seconds - slope * self._rows, 0.0)
            self._row_s = max((self._seconds - self._batch_s) / max(self._rows, 1.0), 0.0)
            return
        expected = self._batch_s + self._row_s * self._rows
        scale = self._seconds / max(expected, MIN_COST_S)
        self._batch_s *= scale
        self._row_s *= scale


class Margin:
    """Seconds by which answers come later than predicted, but for one in a hundred.

    A step up for an answer later than that, a hundredth of it down for any other: in balance, one
    in a hundred is later.
    """

    MISSED = 0.01

    def __init__(self) -> None:
        self.seconds = 0.0

    def observe(self, late_s: float, step_s: float) -> None:
        """Learn from an answer.

        Args:
            late_s: How much later than predicted it came; negative: earlier.
            step_s: How far one answer may move the margin.
        """
        if late_s > self.seconds:
            self.seconds += step_s
        else:
            self.seconds = max(self.seconds - self.MISSED * step_s, 0.0)
