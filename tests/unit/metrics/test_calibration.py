"""Normalised entropy, the reliability curve and its error, by hand."""

import math

import numpy as np
import pytest

from fastdlrm.metrics.calibration import (
    expected_calibration_error,
    normalised_entropy,
    reliability_curve,
)
from fastdlrm.metrics.values import ReliabilityBin


def test_normalised_entropy_of_the_base_rate_is_one() -> None:
    # 1 of 4: entropy -(1/4) ln(1/4) - (3/4) ln(3/4) = 0.346574 + 0.215762 = 0.562335.
    assert normalised_entropy(0.562335, 1, 4) == pytest.approx(1.0, abs=2e-6)
    # At a rate of 1/2 the entropy is ln 2.
    assert normalised_entropy(0.5 * math.log(2), 5, 10) == pytest.approx(0.5)


@pytest.mark.parametrize("num_positives", [0, 10])
def test_normalised_entropy_of_one_class_does_not_exist(num_positives: int) -> None:
    assert normalised_entropy(0.1, num_positives, 10) is None


def test_curve_splits_samples_evenly() -> None:
    # Four groups of one sample, predicted 0.1 0.3 0.6 0.8, labels 0 1 0 1; two bins of two.
    curve = reliability_curve(
        np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0]), np.array([0.1, 0.3, 0.6, 0.8]), num_bins=2
    )
    assert [b.num_samples for b in curve] == [2, 2]
    assert [b.mean_prediction for b in curve] == pytest.approx([0.2, 0.7])
    assert [b.mean_label for b in curve] == [0.5, 0.5]
    # (2 |0.2 - 0.5| + 2 |0.7 - 0.5|) / 4 = (0.6 + 0.4) / 4.
    assert expected_calibration_error(curve) == pytest.approx(0.25)


def test_ties_stay_together_and_empty_bins_are_left_out() -> None:
    # 8 samples of one score, then 2 of another. Middles 4 and 9 of 10: with edges at 2.5, 5 and
    # 7.5 they fall into the second and the fourth bin.
    curve = reliability_curve(np.array([2, 1]), np.array([6, 1]), np.array([2.0, 1.2]), num_bins=4)
    assert [b.num_samples for b in curve] == [8, 2]
    assert [b.mean_prediction for b in curve] == pytest.approx([0.25, 0.6])
    assert [b.mean_label for b in curve] == [0.25, 0.5]
    # (8 * 0 + 2 * 0.1) / 10.
    assert expected_calibration_error(curve) == pytest.approx(0.02)


def test_perfect_calibration_has_no_error() -> None:
    point = ReliabilityBin(num_samples=10, mean_prediction=0.3, mean_label=0.3)
    assert expected_calibration_error([point, point]) == 0.0
