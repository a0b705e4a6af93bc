"""AUC, its bound and average precision, against hand-worked sums and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from fastdlrm.metrics.ranking import (
    area_under_roc,
    auc_error_bound,
    average_precision,
    roc_curve,
)


def groups_of(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives of each distinct score, ascending."""
    distinct = np.unique(scores)
    positives = np.array([np.sum(labels[scores == s] == 1) for s in distinct], np.int64)
    negatives = np.array([np.sum(labels[scores == s] == 0) for s in distinct], np.int64)
    return positives, negatives


def counts(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_auc_of_four_samples() -> None:
    # Scores 0.1- 0.4- 0.35+ 0.8+: of the 4 pairs (0.35, 0.1) (0.8, 0.1) (0.8, 0.4) are right and
    # (0.35, 0.4) is wrong: 3 / 4.
    assert area_under_roc(counts(0, 1, 0, 1), counts(1, 0, 1, 0)) == 0.75


def test_auc_counts_ties_half() -> None:
    # Scores 1-, 2+ 2-, 3+: pairs (2,1) right, (2,2) tied, (3,1) right, (3,2) right:
    # (1 + 0.5 + 1 + 1) / 4.
    assert area_under_roc(counts(0, 1, 1), counts(1, 1, 0)) == 3.5 / 4
    # All tied: no order at all.
    assert area_under_roc(counts(3), counts(7)) == 0.5


def test_bound_is_half_the_pairs_within_groups() -> None:
    # Groups of (2+, 1-) and (1+, 3-): 3 * 4 = 12 pairs, of which 2 * 1 + 1 * 3 = 5 are within.
    assert auc_error_bound(counts(2, 1), counts(1, 3)) == 0.5 * 5 / 12


def test_average_precision_of_four_samples() -> None:
    # Scores 0.8+ 0.4- 0.35+ 0.1-, from the top: recall +1/2 at precision 1/1, then +1/2 at
    # precision 2/3: 1/2 + 1/3.
    assert average_precision(counts(0, 1, 0, 1), counts(1, 0, 1, 0)) == pytest.approx(5 / 6)
    # A tie is one threshold: recall +1 at precision 2/5.
    assert average_precision(counts(2), counts(3)) == pytest.approx(2 / 5)


def test_one_class_alone_defines_no_ranking() -> None:
    assert area_under_roc(counts(2, 1), counts(0, 0)) is None
    assert area_under_roc(counts(0, 0), counts(2, 1)) is None
    assert auc_error_bound(counts(0, 0), counts(2, 1)) is None
    assert average_precision(counts(0, 0), counts(2, 1)) is None
    assert average_precision(counts(2, 1), counts(0, 0)) == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_scores", [3, 40, 100_000])
def test_agrees_with_scikit_learn(seed: int, num_scores: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, num_scores, 500)
    labels = (rng.random(500) < 0.2).astype(np.int64)
    positives, negatives = groups_of(scores, labels)
    assert area_under_roc(positives, negatives) == pytest.approx(
        roc_auc_score(labels, scores), abs=1e-12
    )
    assert average_precision(positives, negatives) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


def test_roc_of_four_groups() -> None:
    # From the highest score down: + ; + - ; - ; + - : of 3 positives and 3 negatives, after each
    # group 1/3, 2/3, 2/3, 1 are found, at 0, 1/3, 2/3, 1 false alarms.
    curve = roc_curve(counts(1, 0, 1, 1), counts(1, 1, 1, 0))
    assert curve is not None
    assert curve.true_positive_rates == (0, 1 / 3, 2 / 3, 2 / 3, 1)
    assert curve.false_positive_rates == (0, 0, 1 / 3, 2 / 3, 1)


def test_roc_keeps_points_of_the_whole_curve() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 5000)
    scores = rng.normal(size=5000) + labels
    curve = roc_curve(*groups_of(scores, labels), num_points=50)
    assert curve is not None
    assert 45 <= len(curve.true_positive_rates) == len(curve.false_positive_rates) <= 50
    alarms, hits, _ = sklearn_roc(labels, scores, drop_intermediate=False)
    whole = {(round(a, 9), round(h, 9)) for a, h in zip(alarms, hits, strict=True)}
    chosen = zip(curve.false_positive_rates, curve.true_positive_rates, strict=True)
    assert {(round(a, 9), round(h, 9)) for a, h in chosen} <= whole
    area = np.trapezoid(curve.true_positive_rates, curve.false_positive_rates)
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)


def test_roc_needs_both_classes() -> None:
    assert roc_curve(counts(1, 2), counts(0, 0)) is None
