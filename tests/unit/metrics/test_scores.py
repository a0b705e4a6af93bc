"""How scores are kept: groups, bins, states as arrays."""

import numpy as np
import pytest

from fastdlrm.metrics.ranking import area_under_roc, auc_error_bound
from fastdlrm.metrics.scores import ExactScores, HistogramScores


def filled(state: ExactScores | HistogramScores, logits: list[float], labels: list[int]):
    state.update(np.array(logits, np.float32), np.array(labels) == 1)
    return state


def test_exact_groups_count_each_distinct_score() -> None:
    groups = filled(ExactScores(), [2.0, -1.0, 2.0, 0.0, -0.0, -1.0], [1, 0, 0, 1, 0, 0]).groups()
    # Distinct: -1 (2-), 0 and -0 as one (1+ 1-), 2 (1+ 1-).
    np.testing.assert_array_equal(groups.positives, [0, 1, 1])
    np.testing.assert_array_equal(groups.negatives, [2, 1, 1])
    # sigmoid(-1) = 0.26894142, sigmoid(0) = 0.5, sigmoid(2) = 0.88079708, two samples each.
    np.testing.assert_allclose(groups.predictions, [0.53788284, 1.0, 1.76159416], atol=1e-8)
    # -ln of the right side: -1: 2 * 0.31326169; 0: 2 * 0.69314718; 2: 0.12692801 + 2.12692801.
    assert groups.log_loss == pytest.approx(0.62652338 + 1.38629436 + 2.25385602, abs=1e-7)
    assert groups.threshold == 1
    assert groups.are_ties


def test_histogram_groups_are_the_filled_bins() -> None:
    # Four bins of width 16: [-32, -16) [-16, 0) [0, 16) [16, 32); 40 and -40 go to the outer ones.
    state = filled(HistogramScores(4), [-40.0, -0.5, -7.0, 15.0, 40.0], [0, 1, 0, 1, 1])
    groups = state.groups()
    np.testing.assert_array_equal(groups.positives, [0, 1, 1, 1])
    np.testing.assert_array_equal(groups.negatives, [1, 1, 0, 0])
    assert groups.threshold == 2
    assert not groups.are_ties
    # Without the samples below 0 the threshold is the first filled bin.
    assert filled(HistogramScores(4), [0.0], [1]).groups().threshold == 0


def test_histogram_sums_do_not_depend_on_the_bins() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, 1000).tolist(), rng.integers(0, 2, 1000).tolist()
    coarse = filled(HistogramScores(2), logits, labels).groups()
    exact = filled(ExactScores(), logits, labels).groups()
    assert coarse.log_loss == pytest.approx(exact.log_loss)
    assert coarse.predictions.sum() == pytest.approx(exact.predictions.sum())
    assert coarse.negatives[0] == exact.negatives[: exact.threshold].sum()


@pytest.mark.parametrize("num_bins", [2, 64, 1024, 1 << 17])
def test_histogram_auc_is_within_its_bound(num_bins: int) -> None:
    rng = np.random.default_rng(num_bins)
    labels = rng.integers(0, 2, 4000)
    logits = (rng.normal(size=4000) + labels).tolist()
    exact = filled(ExactScores(), logits, labels.tolist()).groups()
    binned = filled(HistogramScores(num_bins), logits, labels.tolist()).groups()
    truth = area_under_roc(exact.positives, exact.negatives)
    found = area_under_roc(binned.positives, binned.negatives)
    bound = auc_error_bound(binned.positives, binned.negatives)
    assert truth is not None and found is not None and bound is not None
    assert abs(found - truth) <= bound


def test_histogram_reaches_its_bound() -> None:
    # Both in one bin and ordered right: exact 1, found 1/2, bound 1/2.
    groups = filled(HistogramScores(2), [1.0, 2.0], [0, 1]).groups()
    assert area_under_roc(groups.positives, groups.negatives) == 0.5
    assert auc_error_bound(groups.positives, groups.negatives) == 0.5


@pytest.mark.parametrize("num_bins", [0, 3])
def test_number_of_bins_is_even(num_bins: int) -> None:
    with pytest.raises(ValueError, match=rf"num_bins {num_bins}; take an even number from 2 up"):
        HistogramScores(num_bins)


def test_states_of_other_bins_do_not_merge() -> None:
    with pytest.raises(ValueError, match="4 bins merged into 8; make both states with the same"):
        HistogramScores(8).add_arrays(HistogramScores(4).arrays())


def test_states_of_another_kind_do_not_merge() -> None:
    with pytest.raises(ValueError, match="ExactScores: no positive_scores in a state of"):
        ExactScores().add_arrays(HistogramScores(4).arrays())
    with pytest.raises(ValueError, match="HistogramScores: no positive_counts in a state of"):
        HistogramScores(4).add_arrays(ExactScores().arrays())


def test_arrays_are_a_copy() -> None:
    state = filled(HistogramScores(4), [1.0], [1])
    arrays = state.arrays()
    filled(state, [1.0], [1])
    assert arrays["positive_counts"].sum() == 1
