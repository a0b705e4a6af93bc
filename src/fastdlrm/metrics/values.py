"""The numbers of one evaluation, as plain data.

Invariant: a number that the rows do not define (the AUC of rows of one class) is None, never NaN.
"""

import msgspec

SCALARS = ("auc", "log_loss", "ne", "calibration", "ece", "pr_auc", "accuracy")
"""Metrics that are one number, in the order they are shown; accuracy comes last, because at a
click rate of 3 % a model that says no to everything reaches 0.97."""


LOWER_IS_BETTER = ("log_loss", "ne")
"""Of the metrics that may pick the best checkpoint."""


class ReliabilityBin(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the reliability curve: samples of neighbouring scores."""

    num_samples: int
    """At least 1."""
    mean_prediction: float
    """Mean predicted probability."""
    mean_label: float
    """Share of positives; equal to mean_prediction where the model is calibrated."""


class RocCurve(msgspec.Struct, frozen=True, kw_only=True):
    """Points of the receiver operating characteristic, from the highest score down.

    Both begin at 0, end at 1 and never fall.
    """

    false_positive_rates: tuple[float, ...]
    """Share of the negatives scored at least so high."""
    true_positive_rates: tuple[float, ...]
    """Share of the positives scored at least so high."""


class MetricValues(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation found."""

    auc: float | None
    """Area under the ROC curve: the share of positive-negative pairs that the scores order right,
    ties counted half. None where one class is absent."""
    auc_error_bound: float | None
    """Largest distance of `auc` from the exact value; 0 where every score was kept."""
    pr_auc: float | None
    """Average precision. None without a positive."""
    log_loss: float
    """Mean negative log likelihood, in nats."""
    ne: float | None
    """Normalised entropy: log_loss over that of the base rate; 1 is no better than a constant. None
    where one class is absent."""
    calibration: float | None
    """Mean prediction over mean label. None without a positive."""
    ece: float
    """Expected calibration error: mean distance of the reliability curve from the diagonal."""
    accuracy: float
    """Share of samples on the right side of probability 0.5."""
    num_samples: int
    num_positives: int
    reliability: tuple[ReliabilityBin, ...]
    """Bins of about equally many samples, by ascending score."""
    roc: RocCurve | None = None
    """None where one class is absent, or an earlier version evaluated."""

    def scalars(self) -> dict[str, float]:
        """The scalar metrics that exist, by name, in the order of `SCALARS`."""
        values = {name: getattr(self, name) for name in SCALARS}
        return {name: value for name, value in values.items() if value is not None}


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a metric's value beats the best so far, if there is one."""
    if best is None:
        return True
    return value < best if metric in LOWER_IS_BETTER else value > best
