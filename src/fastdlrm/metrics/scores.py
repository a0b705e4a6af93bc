"""Scores of both classes, kept exactly or counted in bins, and the groups they form.

Shapes: B samples of a batch, K groups (or bins) by ascending score. A score is a logit.

Invariant: whatever the split of the samples into batches and states, and whatever their order,
`ExactScores` gives the same groups bit for bit; `HistogramScores` the same counts, its sums of
floats up to rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_CHUNK = 1 << 15  # groups at a time: temporaries stay in the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Samples grouped by score; each metric is a function of this.

    Attributes:
        positives: Samples with label 1, shape (K,).
        negatives: Samples with label 0, shape (K,).
        predictions: Sum of the predicted probabilities, shape (K,).
        threshold: First group with a predicted probability of 0.5 or more.
        log_loss: Sum over all samples.
        are_ties: Whether the samples of a group have one score, not merely one bin.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    predictions: NDArray[np.float64]
    threshold: int
    log_loss: float
    are_ties: bool


class ExactScores:
    """Every score as float32: 4 bytes a sample, and about 60 more while metrics are computed."""

    def __init__(self) -> None:
        self._positives: list[NDArray[np.float32]] = []
        self._negatives: list[NDArray[np.float32]] = []

    def update(self, logits_B: NDArray[np.float32], is_positive_B: NDArray[np.bool_]) -> None:
        """Keep the scores of one batch."""
        self._positives.append(logits_B[is_positive_B])
        self._negatives.append(logits_B[~is_positive_B])

    def groups(self) -> Groups:
        """One group a distinct score."""
        positives, negatives = _join(self._positives), _join(self._negatives)
        positives.sort()
        negatives.sort()
        scores_K, positives_K, negatives_K = _tally(positives, negatives)
        predictions_K = np.empty(len(scores_K))
        log_loss = 0.0
        for start in range(0, len(scores_K), _CHUNK):
            part = slice(start, start + _CHUNK)
            predictions_K[part], log_loss_part = _likelihood(
                scores_K[part].astype(np.float64), positives_K[part], negatives_K[part]
            )
            log_loss += float(log_loss_part.sum())
        return Groups(
            positives=positives_K,
            negatives=negatives_K,
            predictions=predictions_K,
            threshold=int(np.searchsorted(scores_K, 0.0)),
            log_loss=log_loss,
            are_ties=True,
        )

    def arrays(self) -> Arrays:
        """The state as plain arrays."""
        return {
            "positive_scores": _join(self._positives),
            "negative_scores": _join(self._negatives),
        }

    def add_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add the samples of another state's `arrays`.

        Raises:
            ValueError: The other state is not of exact scores.
        """
        _require(arrays, "positive_scores", self)
        self._positives.append(arrays["positive_scores"])
        self._negatives.append(arrays["negative_scores"])


class HistogramScores:
    """Counts of scores in bins of equal width: memory does not grow with the samples.

    Scores beyond the limit fall into the outermost bins. One edge is at 0, so that accuracy at
    probability 0.5 is exact, as are log loss and calibration; AUC is within its bound (see
    `ranking.auc_error_bound`), and average precision and the reliability curve are of the bins.
    """

    LIMIT = 32.0
    """Bins cover logits from -LIMIT to LIMIT, of probability 1e-14 to 1 - 1e-14."""

    def __init__(self, num_bins: int = 1 << 17) -> None:
        if num_bins < 2 or num_bins % 2:
            raise ValueError(f"HistogramScores: num_bins {num_bins}; take an even number from 2 up")
        self._positives = np.zeros(num_bins, np.int64)
        self._negatives = np.zeros(num_bins, np.int64)
        self._predictions = np.zeros(num_bins, np.float64)
        self._log_loss = 0.0

    def update(self, logits_B: NDArray[np.float32], is_positive_B: NDArray[np.bool_]) -> None:
        """Count the scores of one batch."""
        scores_B = logits_B.astype(np.float64)
        half = len(self._positives) // 2
        position_B = np.floor(scores_B * (half / self.LIMIT)).clip(-half, half - 1)
        bin_B = position_B.astype(np.int64) + half
        negative_B = ~is_positive_B
        predictions_B, log_loss_B = _likelihood(scores_B, is_positive_B, negative_B)
        np.add.at(self._positives, bin_B, is_positive_B.astype(np.int64))
        np.add.at(self._negatives, bin_B, negative_B.astype(np.int64))
        np.add.at(self._predictions, bin_B, predictions_B)
        self._log_loss += float(log_loss_B.sum())

    def groups(self) -> Groups:
        """One group a bin that holds a sample."""
        filled_K = np.flatnonzero(self._positives + self._negatives)
        return Groups(
            positives=self._positives[filled_K],
            negatives=self._negatives[filled_K],
            predictions=self._predictions[filled_K],
            threshold=int(np.searchsorted(filled_K, len(self._positives) // 2)),
            log_loss=self._log_loss,
            are_ties=False,
        )

    def arrays(self) -> Arrays:
        """The state as plain arrays."""
        return {
            "positive_counts": self._positives.copy(),
            "negative_counts": self._negatives.copy(),
            "predictions": self._predictions.copy(),
            "log_loss": np.array([self._log_loss]),
        }

    def add_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add the counts of another state's `arrays`.

        Raises:
            ValueError: The other state is not of bins, or of other bins.
        """
        _require(arrays, "positive_counts", self)
        if len(arrays["positive_counts"]) != len(self._positives):
            raise ValueError(
                f"HistogramScores: {len(arrays['positive_counts'])} bins merged into "
                f"{len(self._positives)}; make both states with the same num_bins"
            )
        self._positives += arrays["positive_counts"]
        self._negatives += arrays["negative_counts"]
        self._predictions += arrays["predictions"]
        self._log_loss += float(arrays["log_loss"][0])


def _require(arrays: Mapping[str, NDArray[Any]], name: str, state: object) -> None:
    if name not in arrays:
        raise ValueError(
            f"{type(state).__name__}: no {name} in a state of {', '.join(arrays)}; make both "
            "states with the same kind of scores"
        )


def _join(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


@njit(cache=True, nogil=True)
def _tally(
    positives: NDArray[np.float32], negatives: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores of two ascending arrays, and how often each has them."""
    P, N = len(positives), len(negatives)
    scores_K = np.empty(P + N, np.float32)
    positives_K = np.empty(P + N, np.int64)
    negatives_K = np.empty(P + N, np.int64)
    i = j = k = 0
    while i < P or j < N:
        is_positive_next = j == N or (i < P and positives[i] < negatives[j])
        score = positives[i] if is_positive_next else negatives[j]
        start_i, start_j = i, j
        while i < P and positives[i] == score:
            i += 1
        while j < N and negatives[j] == score:
            j += 1
        scores_K[k], positives_K[k], negatives_K[k] = score, i - start_i, j - start_j
        k += 1
    return scores_K[:k], positives_K[:k], negatives_K[:k]


def _likelihood(
    scores: NDArray[np.float64], positives: NDArray[Any], negatives: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summed predictions and log losses of samples counted by logit.

    With e = exp(-|x|): sigmoid(x) is 1 / (1 + e) or e / (1 + e) by the sign of x, and
    -log sigmoid(x) is log(1 + e) + max(-x, 0). No term overflows or cancels.
    """
    e = np.exp(-np.abs(scores))
    is_up = scores >= 0
    num = positives.astype(np.float64) + negatives
    predictions = num * np.where(is_up, 1.0, e) / (1.0 + e)
    wrong = np.where(is_up, negatives, positives)
    return predictions, num * np.log1p(e) + wrong * np.abs(scores)
