"""Calibrations against scikit-learn, and against numbers worked by hand."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from fastdlrm.contracts.exported import Calibration
from fastdlrm.errors import ExportError
from fastdlrm.export.calibration import (
    MAX_KNOTS,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    probabilities,
)


def samples(n=4000, seed=0):
    """Logits that are twice too sure of themselves, and 0.7 too high."""
    random = np.random.default_rng(seed)
    true = random.normal(-1, 1.5, n)
    labels = (random.random(n) < 1 / (1 + np.exp(-true))).astype(np.float64)
    return 2 * true + 0.7, labels


def test_platt_is_logistic_regression():
    logits, labels = samples()
    slope, intercept = fit_platt(logits, labels)
    plain = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    # Platt's targets pull a little towards one half: by 1 / (N + 2)
    assert slope == pytest.approx(plain.coef_[0, 0], rel=0.01)
    assert intercept == pytest.approx(plain.intercept_[0], rel=0.02)
    assert slope == pytest.approx(0.5, abs=0.05)
    assert intercept == pytest.approx(-0.35, abs=0.1)


def test_isotonic_is_scikit_learns():
    logits, labels = samples(600)
    knots, values = fit_isotonic(logits, labels)
    assert (np.diff(knots) > 0).all()
    assert (np.diff(values) >= 0).all()
    theirs = IsotonicRegression(out_of_bounds="clip").fit(logits, labels)
    at = np.concatenate([logits, [-100.0, 100.0]])
    np.testing.assert_allclose(np.interp(at, knots, values), theirs.predict(at), atol=1e-12)


def test_isotonic_of_many_samples_has_a_bounded_number_of_knots():
    logits, labels = samples(200_000)
    knots, values = fit_isotonic(logits, labels)
    assert len(knots) <= MAX_KNOTS + 2
    assert (np.diff(values) >= 0).all()
    assert np.interp(logits, knots, values).mean() == pytest.approx(labels.mean(), abs=2e-3)


def test_ties_are_pooled_by_hand():
    # at 1: labels 1, 0 -> 1/2; at 2: label 0 violates, pooled with it: (1/2 * 2 + 0) / 3 = 1/3
    knots, values = fit_isotonic(np.array([1.0, 1, 2, 3]), np.array([1.0, 0, 0, 1]))
    assert knots.tolist() == [1, 2, 3]
    assert values == pytest.approx([1 / 3, 1 / 3, 1])


def test_negative_rate_by_hand():
    # a tenth of the negatives was seen: p = 0.5 becomes 0.5 / (0.5 + 0.5 / 0.1) = 1 / 11
    found = probabilities(Calibration(negative_rate=0.1), np.zeros(1, np.float32))
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(1 / 11)


def test_a_probability_depends_on_its_own_logit_alone():
    logits, labels = samples()
    for kind in ("none", "platt", "isotonic"):
        fitted = fit_calibration(kind, logits, labels, 0.5)
        together = probabilities(fitted, logits.astype(np.float32))
        alone = [probabilities(fitted, logits[i : i + 1].astype(np.float32))[0] for i in range(99)]
        assert together[:99].tolist() == alone
        assert np.abs(together.mean() - labels.mean()) < (0.01 if kind != "none" else 1)


def test_refusals():
    logits, labels = samples(50)
    with pytest.raises(ExportError, match=r"negative rate 0: above 0 and at most 1"):
        fit_calibration("none", logits, labels, 0)
    with pytest.raises(ExportError, match=r"'platt': the validation split's 50 rows are of one"):
        fit_calibration("platt", logits, np.zeros(50))
