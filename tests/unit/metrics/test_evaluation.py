"""The one state of all metrics, against scikit-learn, hand-worked sums and hostile input."""

import math

import msgspec
import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    log_loss,
    roc_auc_score,
)

from fastdlrm.errors import DataError
from fastdlrm.metrics.evaluation import Evaluation
from fastdlrm.metrics.scores import HistogramScores
from fastdlrm.metrics.values import SCALARS, MetricValues
from fastdlrm.train.config import TrainConfig


def evaluated(logits: object, labels: object, state: Evaluation | None = None) -> MetricValues:
    state = Evaluation() if state is None else state
    state.update(np.asarray(logits), np.asarray(labels))
    return state.compute()


def sample(seed: int, num: int = 3000, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits with ties, rounded so that float32 holds them as float64 does, and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(num) < 0.1).astype(np.float32)
    logits = np.round((rng.normal(size=num) - 2 + labels) * 8 * decimals) / (8 * decimals)
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_learn(seed: int) -> None:
    logits, labels = sample(seed)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    values = evaluated(logits, labels)
    assert values.auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert values.pr_auc == pytest.approx(average_precision_score(labels, logits), abs=1e-12)
    assert values.log_loss == pytest.approx(log_loss(labels, probabilities), rel=1e-12)
    assert values.accuracy == accuracy_score(labels, probabilities >= 0.5)
    base = np.full(len(labels), labels.astype(np.float64).mean())
    assert values.ne == pytest.approx(values.log_loss / log_loss(labels, base), rel=1e-12)
    assert values.num_samples == 3000
    assert values.num_positives == labels.sum()
    assert values.auc_error_bound == 0.0


def test_four_samples_by_hand() -> None:
    # Odds 1:3, 1:1, 3:1, 3:1, so probabilities 1/4, 1/2, 3/4, 3/4; labels 0, 1, 0, 1.
    third = math.log(3)
    values = evaluated([-third, 0.0, third, third], [0.0, 1.0, 0.0, 1.0])
    # Pairs: (1/2, 1/4) right, (1/2, 3/4) wrong, (3/4, 1/4) right, (3/4, 3/4) tied: 2.5 / 4.
    assert values.auc == 0.625
    # Right sides 3/4, 1/2, 1/4, 3/4: -ln(3/4 * 1/2 * 1/4 * 3/4) / 4 = ln(128 / 9) / 4.
    assert values.log_loss == pytest.approx(math.log(128 / 9) / 4)
    # Base rate 1/2, entropy ln 2.
    assert values.ne == pytest.approx(math.log(128 / 9) / 4 / math.log(2))
    # (1/4 + 1/2 + 3/4 + 3/4) / 2 = 9/8.
    assert values.calibration == pytest.approx(9 / 8)
    # Right: 1/4 for 0, 1/2 for 1 (half counts as yes), 3/4 for 1.
    assert values.accuracy == 3 / 4
    # From the top: recall +1/2 at precision 1/2, then +1/2 at precision 2/3.
    assert values.pr_auc == pytest.approx(1 / 4 + 1 / 3)
    # Bins are the groups: (1 * 1/4 + 1 * 1/2 + 2 * |3/4 - 1/2|) / 4 = 5/16.
    assert values.ece == pytest.approx(5 / 16)
    assert [b.num_samples for b in values.reliability] == [1, 1, 2]


def test_bins_of_the_curve_cover_every_sample() -> None:
    values = evaluated(*sample(0, decimals=1000))
    assert len(values.reliability) == 15
    assert [b.num_samples for b in values.reliability] == [200] * 15
    means = [b.mean_prediction for b in values.reliability]
    assert means == sorted(means)


@pytest.mark.parametrize("scores", [None, HistogramScores()], ids=["exact", "histogram"])
def test_extreme_logits_are_finite(scores: HistogramScores | None) -> None:
    state = Evaluation(scores)
    values = evaluated([100.0, -100.0, 100.0, -100.0], [1.0, 0.0, 0.0, 1.0], state)
    # The two wrong ones cost 100 each, the right ones e^-100.
    assert values.log_loss == pytest.approx(50.0)
    assert values.calibration == pytest.approx(1.0)
    assert values.accuracy == 0.5
    largest = float(np.finfo(np.float32).max)
    assert math.isfinite(evaluated([largest, -largest], [0.0, 1.0]).log_loss)


def test_probabilities_that_float32_rounds_to_one_keep_their_order() -> None:
    # sigmoid(20) and sigmoid(30) are both 1 in float32; their logits are not tied.
    assert evaluated([20.0, 30.0], [0.0, 1.0]).auc == 1.0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_leaves_undefined_metrics_out(label: float) -> None:
    values = evaluated([0.0, 1.0], [label, label])
    assert values.auc is None
    assert values.auc_error_bound is None
    assert values.ne is None
    assert (values.calibration is None) == (label == 0.0)
    assert (values.pr_auc is None) == (label == 0.0)
    assert math.isfinite(values.log_loss)
    histogram = evaluated([0.0, 1.0], [label, label], Evaluation(HistogramScores()))
    assert histogram.auc is None
    assert histogram.auc_error_bound is None


def test_accuracy_is_no_headline() -> None:
    """The reference reports accuracy at probability 0.5 by default.

    At a click rate of 3 % "never" is right 97 times in 100 and yet knows nothing.
    """
    rng = np.random.default_rng(0)
    labels = (np.arange(10_000) % 100 < 3).astype(np.float32)
    never = evaluated(np.full(10_000, -9.0), labels)
    useful = evaluated(rng.normal(size=10_000) + 2 * labels - 1, labels)
    assert never.accuracy == 0.97 > useful.accuracy
    assert never.auc is not None and useful.auc is not None
    assert never.auc == 0.5 < 0.85 < useful.auc
    assert next(iter(useful.scalars())) == "auc"
    assert tuple(useful.scalars())[-1] == "accuracy"
    default = next(f for f in msgspec.structs.fields(TrainConfig) if f.name == "best_metric")
    assert default.default == "auc"


def test_only_values_that_exist_have_a_heading() -> None:
    """The reference prints the heading of a training accuracy that it no longer computes."""
    assert tuple(evaluated([0.0, 1.0], [0.0, 1.0]).scalars()) == SCALARS
    assert tuple(evaluated([0.0], [0.0]).scalars()) == ("log_loss", "ece", "accuracy")


def test_shuffled_labels_give_half() -> None:
    rng = np.random.default_rng(0)
    values = evaluated(rng.normal(size=20_000), rng.integers(0, 2, 20_000))
    # Standard deviation of AUC under no signal: sqrt((P + N + 1) / (12 P N)) = 0.0041.
    assert values.auc == pytest.approx(0.5, abs=4 * 0.0041)


def test_takes_torch_tensors_of_any_float_type() -> None:
    logits, labels = [-1.0, 0.5, 2.0], [0.0, 0.0, 1.0]
    expected = evaluated(logits, labels)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        state = Evaluation()
        state.update(torch.tensor(logits, dtype=dtype, requires_grad=True), torch.tensor(labels))
        assert state.compute() == expected


def test_keeps_no_reference_to_the_batch() -> None:
    logits = torch.tensor([0.0, 1.0])
    state = Evaluation()
    state.update(logits, torch.tensor([0.0, 1.0]))
    logits.zero_()
    assert state.compute().auc == 1.0


def test_compute_can_be_called_between_updates() -> None:
    state = Evaluation()
    state.update(np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    assert state.compute().auc == 0.0
    state.update(np.array([2.0]), np.array([1.0]))
    assert state.compute().auc == 0.5


def test_values_survive_json() -> None:
    values = evaluated(*sample(0))
    assert msgspec.json.decode(msgspec.json.encode(values), type=MetricValues) == values
    alone = evaluated([0.0], [1.0])
    assert msgspec.json.decode(msgspec.json.encode(alone), type=MetricValues) == alone


@pytest.mark.parametrize("kind", [None, HistogramScores], ids=["exact", "histogram"])
def test_state_as_arrays_can_be_continued(kind: type[HistogramScores] | None) -> None:
    logits, labels = sample(1)
    whole, first = (Evaluation(kind and kind()) for _ in range(2))
    whole.update(logits[:700], labels[:700])
    first.update(logits[:700], labels[:700])
    resumed = Evaluation(kind and kind())
    resumed.add_arrays(first.arrays())
    whole.update(logits[700:], labels[700:])
    resumed.update(logits[700:], labels[700:])
    assert resumed.compute() == whole.compute()


def test_merging_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="make both states with the same kind of scores"):
        Evaluation().merge(Evaluation(HistogramScores()))


def test_no_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="evaluation: no samples; name a split that has rows"):
        Evaluation().compute()
    state = Evaluation()
    state.merge(Evaluation())
    state.update(np.empty(0), np.empty(0))
    with pytest.raises(DataError, match="no samples"):
        state.compute()


def test_nan_says_where_and_how_many() -> None:
    state = Evaluation()
    state.update(np.zeros(5), np.zeros(5))
    logits = np.array([0.0, np.nan, 1.0, np.inf])
    with pytest.raises(
        DataError,
        match=r"2 of 4 logits are not finite, the first at sample 6: nan; .*learning ra",
    ):
        state.update(logits, np.zeros(4))
    # Beyond float32: refused as well, without a warning from the cast.
    with pytest.raises(DataError, match="1 of 1 logits are not finite, the first at sample 5: inf"):
        state.update(np.array([1e300]), np.zeros(1))
    assert state.compute().num_samples == 5


def test_labels_other_than_0_and_1_are_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"2 of 3 labels are neither 0 nor 1, the first at sample 1: 0.5; prepare the dataset",
    ):
        Evaluation().update(np.zeros(3), np.array([0.0, 0.5, 2.0]))


@pytest.mark.parametrize(("left", "right"), [((3,), (2,)), ((3, 1), (3,)), ((3, 1), (3, 1))])
def test_shapes_must_agree(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits of shape .* and labels of shape .*give both as"):
        Evaluation().update(np.zeros(left), np.zeros(right))
