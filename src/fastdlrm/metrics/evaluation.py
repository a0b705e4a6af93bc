"""One mergeable state for all metrics of a set of predictions: update, merge, compute."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdlrm.errors import DataError
from fastdlrm.metrics.calibration import (
    expected_calibration_error,
    normalised_entropy,
    reliability_curve,
)
from fastdlrm.metrics.ranking import (
    area_under_roc,
    auc_error_bound,
    average_precision,
    roc_curve,
)
from fastdlrm.metrics.scores import Arrays, ExactScores, HistogramScores
from fastdlrm.metrics.values import MetricValues

__all__ = ["Evaluation", "MetricValues"]


class Evaluation:
    """Gathers logits and labels; workers and ranks each fill their own, and merge.

    Logits, not probabilities: float32 probabilities round to 1 from a logit of 17 on, which ties
    scores and makes log loss infinite.

    Args:
        scores: How scores are kept; every one by default, `HistogramScores()` for data whose scores
            do not fit in memory.
    """

    def __init__(self, scores: ExactScores | HistogramScores | None = None) -> None:
        self._scores = ExactScores() if scores is None else scores
        self._num_samples = 0

    def update(self, logits: Tensor | NDArray[Any], labels: Tensor | NDArray[Any]) -> None:
        """Add the samples of one batch.

        Args:
            logits: Shape (B,), any float type, on any device; kept as float32.
            labels: Shape (B,), each 0 or 1.

        Raises:
            DataError: A logit is not finite, or a label is neither 0 nor 1.
            ValueError: The two shapes differ.
        """
        logits_B, labels_B = _to_float32(logits), _to_float32(labels)
        if logits_B.shape != labels_B.shape or logits_B.ndim != 1:
            raise ValueError(
                f"Evaluation.update: logits of shape {logits_B.shape} and labels of shape "
                f"{labels_B.shape}; give both as (B,)"
            )
        self._refuse(
            ~np.isfinite(logits_B),
            logits_B,
            "logits are not finite",
            "training diverged, or an input is not finite: lower the learning rate or set "
            "train.gradient_clip_norm",
        )
        is_positive_B = labels_B == 1
        self._refuse(
            ~(is_positive_B | (labels_B == 0)),
            labels_B,
            "labels are neither 0 nor 1",
            "prepare the dataset again",
        )
        self._scores.update(logits_B, is_positive_B)
        self._num_samples += len(logits_B)

    def merge(self, other: "Evaluation") -> None:
        """Add another state's samples; `compute` then gives what one state of all would give.

        Raises:
            ValueError: The two keep scores in different ways.
        """
        self.add_arrays(other.arrays())

    def compute(self) -> MetricValues:
        """Every metric of the samples so far.

        Raises:
            DataError: There is no sample.
        """
        if not self._num_samples:
            raise DataError("evaluation: no samples; name a split that has rows")
        groups = self._scores.groups()
        positives_K, negatives_K = groups.positives, groups.negatives
        num_samples, num_positives = self._num_samples, int(positives_K.sum())
        log_loss = groups.log_loss / num_samples
        prediction_sum = float(groups.predictions.sum())
        correct = (negatives_K[: groups.threshold].sum(), positives_K[groups.threshold :].sum())
        auc = area_under_roc(positives_K, negatives_K)
        exact_bound = None if auc is None else 0.0
        curve = reliability_curve(positives_K, negatives_K, groups.predictions)
        return MetricValues(
            auc=auc,
            auc_error_bound=(
                exact_bound if groups.are_ties else auc_error_bound(positives_K, negatives_K)
            ),
            pr_auc=average_precision(positives_K, negatives_K),
            log_loss=log_loss,
            ne=normalised_entropy(log_loss, num_positives, num_samples),
            calibration=prediction_sum / num_positives if num_positives else None,
            ece=expected_calibration_error(curve),
            accuracy=int(sum(correct)) / num_samples,
            num_samples=num_samples,
            num_positives=num_positives,
            reliability=curve,
            roc=roc_curve(positives_K, negatives_K),
        )

    def arrays(self) -> Arrays:
        """The state as plain arrays, to be stored or sent to another rank."""
        return {**self._scores.arrays(), "num_samples": np.array([self._num_samples])}

    def add_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add the samples of another state's `arrays`; a new state thereby becomes that state.

        Raises:
            ValueError: The other state keeps scores in another way.
        """
        self._scores.add_arrays(arrays)
        self._num_samples += int(arrays["num_samples"][0])

    def _refuse(
        self, is_bad_B: NDArray[np.bool_], values_B: NDArray[np.float32], what: str, remedy: str
    ) -> None:
        if num_bad := int(np.count_nonzero(is_bad_B)):
            first = int(np.argmax(is_bad_B))
            raise DataError(
                f"evaluation: {num_bad} of {len(values_B)} {what}, the first at sample "
                f"{self._num_samples + first}: {values_B[first]}; {remedy}"
            )


def _to_float32(values: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float32).numpy()
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and is refused
        return np.asarray(values, np.float32)
