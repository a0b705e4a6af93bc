"""How well predicted probabilities agree with observed rates.

Shapes: K groups of samples, by ascending score; `positives_K` and `negatives_K` count the samples
of each class, `predictions_K` sums their predicted probabilities.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastdlrm.metrics.values import ReliabilityBin

NUM_BINS = 15
"""Of the reliability curve. More: finer, and a larger error from chance alone."""


def normalised_entropy(log_loss: float, num_positives: int, num_samples: int) -> float | None:
    """Log loss over the entropy of the base rate; below 1 the features tell something.

    Returns:
        The ratio, or None where one class is absent: the entropy is 0.

    Source: He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook".
    """
    if num_positives in (0, num_samples):
        return None
    rate = num_positives / num_samples
    return log_loss / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def reliability_curve(
    positives_K: NDArray[np.int64],
    negatives_K: NDArray[np.int64],
    predictions_K: NDArray[np.float64],
    num_bins: int = NUM_BINS,
) -> tuple[ReliabilityBin, ...]:
    """Mean prediction and mean label in bins of about equally many samples.

    Equal mass, not equal width: click rates are low, and of bins of equal width the first would
    hold nearly all samples. A group goes whole to the bin that its middle sample falls in, so the
    order of samples with one score plays no part.

    Returns:
        At most `num_bins` bins by ascending score; empty ones are left out.

    Source: Nguyen, O'Connor 2015 (adaptive binning).
    """
    samples_K = positives_K + negatives_K
    middle_K = np.cumsum(samples_K) - 0.5 * samples_K
    edges = samples_K.sum() * np.arange(1, num_bins) / num_bins
    cuts = [0, *np.searchsorted(middle_K, edges).tolist(), len(middle_K)]
    bins = []
    for start, stop in pairwise(cuts):
        num_samples = int(samples_K[start:stop].sum())
        if num_samples:
            prediction = float(predictions_K[start:stop].sum()) / num_samples
            label = int(positives_K[start:stop].sum()) / num_samples
            bins.append(
                ReliabilityBin(
                    num_samples=num_samples, mean_prediction=prediction, mean_label=label
                )
            )
    return tuple(bins)


def expected_calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """Mean over samples of |mean prediction - mean label| of their bin.

    Source: Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599.
    """
    num_samples = sum(b.num_samples for b in curve)
    return sum(b.num_samples * abs(b.mean_prediction - b.mean_label) for b in curve) / num_samples
