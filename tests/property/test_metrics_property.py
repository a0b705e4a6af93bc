"""Any split of the samples into batches and states gives the metrics of all at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.metrics.evaluation import Evaluation
from fastdlrm.metrics.scores import HistogramScores

SAMPLES = st.lists(
    st.tuples(
        st.one_of(st.floats(-100, 100, width=32), st.integers(-2, 2).map(float), st.just(-0.0)),
        st.booleans(),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=60,
)


def fill(states: list[Evaluation], samples: list[tuple[float, bool, int]]) -> Evaluation:
    """Each sample to the state that it names; all merged into the first."""
    for number, state in enumerate(states):
        part = [s for s in samples if s[2] % len(states) == number]
        logits = np.array([s[0] for s in part], np.float32)
        state.update(logits, np.array([s[1] for s in part], np.float32))
    for state in states[1:]:
        states[0].merge(state)
    return states[0]


@settings(max_examples=200, deadline=None)
@given(samples=SAMPLES, num_states=st.integers(1, 4))
def test_exact_states_merge_bit_for_bit(
    samples: list[tuple[float, bool, int]], num_states: int
) -> None:
    whole = fill([Evaluation()], samples).compute()
    merged = fill([Evaluation() for _ in range(num_states)], samples[::-1]).compute()
    assert merged == whole


@settings(max_examples=100, deadline=None)
@given(samples=SAMPLES, num_states=st.integers(1, 4), num_bins=st.sampled_from([2, 64, 4096]))
def test_histogram_states_merge(
    samples: list[tuple[float, bool, int]], num_states: int, num_bins: int
) -> None:
    def make(num: int) -> list[Evaluation]:
        return [Evaluation(HistogramScores(num_bins)) for _ in range(num)]

    whole = fill(make(1), samples).compute()
    merged = fill(make(num_states), samples).compute()
    for name in ("auc", "auc_error_bound", "pr_auc", "accuracy", "num_samples", "num_positives"):
        assert getattr(merged, name) == getattr(whole, name)
    for name, value in whole.scalars().items():
        assert merged.scalars()[name] == pytest.approx(value, rel=1e-12, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(samples=SAMPLES, num_bins=st.sampled_from([2, 64, 4096]))
def test_histogram_is_within_its_bound(
    samples: list[tuple[float, bool, int]], num_bins: int
) -> None:
    exact = fill([Evaluation()], samples).compute()
    binned = fill([Evaluation(HistogramScores(num_bins))], samples).compute()
    assert (binned.auc is None) == (exact.auc is None)
    if exact.auc is not None and binned.auc is not None and binned.auc_error_bound is not None:
        assert abs(binned.auc - exact.auc) <= binned.auc_error_bound + 1e-12
    assert binned.accuracy == exact.accuracy
    assert binned.log_loss == pytest.approx(exact.log_loss, rel=1e-9, abs=1e-12)
