"""Means as weighted sums: which features take them, and the weights by hand."""

import torch

from fastdlrm.batch import SparseBatch
from fastdlrm.model.pooling import by_feature, rule_and_means, with_shares

# B = 2; bags: [1, 2] and [], [3] and [1, 1, 0, 4]
BAGS = SparseBatch(
    ids=torch.tensor([1, 2, 3, 1, 1, 0, 4], dtype=torch.int32),
    lengths=torch.tensor([2, 0, 1, 4], dtype=torch.int32),
    weights=None,
    num_features=2,
)
SECOND = torch.tensor([False, True])


def test_a_feature_is_pooled_as_its_table() -> None:
    assert by_feature("mean", ["a", "b"]) == ["mean", "mean"]
    assert by_feature({"a": "sum", "b": "mean"}, ["b", "a", "b"]) == ["mean", "sum", "mean"]


def test_only_features_that_differ_take_weights() -> None:
    rules = {"a": "sum", "b": "mean"}
    assert rule_and_means("mean", ["a", "b"]) == ("mean", None)
    assert rule_and_means(rules, ["b", "b"]) == ("mean", None)
    assert rule_and_means(rules, []) == ("sum", None)
    rule, takes_mean = rule_and_means(rules, ["b", "a", "b"])
    assert rule == "sum"
    assert takes_mean is not None
    assert takes_mean.tolist() == [True, False, True]


def test_shares_by_hand() -> None:
    found = with_shares(BAGS, SECOND)
    assert found.weights is not None
    assert found.weights.tolist() == [1, 1, 1, 0.25, 0.25, 0.25, 0.25]
    weighted = SparseBatch(
        ids=BAGS.ids, lengths=BAGS.lengths, weights=torch.arange(7.0), num_features=2
    )
    found = with_shares(weighted, SECOND)
    assert found.weights is not None
    assert found.weights.tolist() == [0, 1, 2, 0.75, 1, 1.25, 1.5]
    every = with_shares(weighted, torch.tensor([True, True]))
    assert every.weights is not None
    assert every.weights.tolist() == [0, 0.5, 2, 0.75, 1, 1.25, 1.5]


def test_batches_without_a_mean_stay_as_they_are() -> None:
    single = SparseBatch(ids=BAGS.ids[:4], lengths=None, weights=None, num_features=2)
    assert with_shares(single, SECOND) is single
    assert with_shares(BAGS, None) is BAGS


def test_no_samples() -> None:
    none = torch.empty(0, dtype=torch.int32)
    empty = SparseBatch(ids=none, lengths=none, weights=None, num_features=2)
    found = with_shares(empty, SECOND)
    assert found.weights is not None
    assert found.weights.shape == (0,)
