"""How well scores order positives above negatives.

Shapes: K groups of samples of one score (or of one histogram bin), by ascending score;
`positives_K` and `negatives_K` count the samples of each class. Samples of one group are ties.
"""

import numpy as np
from numpy.typing import NDArray

from fastdlrm.metrics.values import RocCurve

Counts = NDArray[np.int64]

NUM_ROC_POINTS = 64
"""Of those of the whole curve, at most. More: finer, and longer records."""


def area_under_roc(positives_K: Counts, negatives_K: Counts) -> float | None:
    """The share of positive-negative pairs with the positive scored higher, ties counted half.

    Returns:
        0 .. 1, or None where there is no pair.

    Source: Mann, Whitney 1947; Hanley, McNeil 1982.
    """
    num_pairs = _num_pairs(positives_K, negatives_K)
    if not num_pairs:
        return None
    below_K = np.cumsum(negatives_K, dtype=np.float64)
    below_K -= 0.5 * negatives_K
    return float((positives_K * below_K).sum() / num_pairs)


def auc_error_bound(positives_K: Counts, negatives_K: Counts) -> float | None:
    """How far `area_under_roc` can be off when the samples of a group are not true ties.

    A pair within a group counts half, and its true worth is 0, 1/2 or 1: the error is at most half
    the share of such pairs.

    Returns:
        0 .. 1/2, or None where there is no pair.
    """
    num_pairs = _num_pairs(positives_K, negatives_K)
    if not num_pairs:
        return None
    within_K = positives_K.astype(np.float64) * negatives_K
    return float(0.5 * within_K.sum() / num_pairs)


def roc_curve(
    positives_K: Counts, negatives_K: Counts, num_points: int = NUM_ROC_POINTS
) -> RocCurve | None:
    """Points of the ROC curve, about equally far apart along it.

    Each is a point of the whole curve, which has one a group; none is interpolated.

    Returns:
        At most `num_points`, from (0, 0) to (1, 1), or None where a class is absent.
    """
    if not _num_pairs(positives_K, negatives_K):
        return None
    hits_K = np.concatenate([[0], np.cumsum(positives_K[::-1])]) / positives_K.sum()
    alarms_K = np.concatenate([[0], np.cumsum(negatives_K[::-1])]) / negatives_K.sum()
    along_K = hits_K + alarms_K
    wanted = np.linspace(0.0, along_K[-1], num_points)
    chosen = np.unique(np.searchsorted(along_K, wanted))
    return RocCurve(
        false_positive_rates=tuple(alarms_K[chosen].tolist()),
        true_positive_rates=tuple(hits_K[chosen].tolist()),
    )


def average_precision(positives_K: Counts, negatives_K: Counts) -> float | None:
    """The sum over thresholds of (recall gained) * precision, from the highest score down.

    No interpolation, as scikit-learn's `average_precision_score`.

    Returns:
        0 .. 1, or None where there is no positive.
    """
    num_positives = int(positives_K.sum())
    if not num_positives:
        return None
    found_K = np.cumsum(positives_K[::-1])
    taken_K = found_K + np.cumsum(negatives_K[::-1])
    return float((positives_K[::-1] * (found_K / taken_K)).sum() / num_positives)


def _num_pairs(positives_K: Counts, negatives_K: Counts) -> int:
    return int(positives_K.sum()) * int(negatives_K.sum())
