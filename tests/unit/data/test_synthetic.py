import pytest

from fastdlrm.config import from_tree, load_config
from fastdlrm.data.synthetic import IdConfig, RandomConfig
from fastdlrm.errors import ConfigError
from fastdlrm.train.recipe import Recipe


def test_a_preset_without_the_section_has_its_defaults():
    assert load_config("tiny", Recipe).random == RandomConfig()


def test_the_section_is_read():
    random = load_config("random", Recipe, ["random.label_rate=0.1"]).random
    assert random.label_rate == 0.1
    assert [group.distribution for group in random.sparse] == [
        "zipf",
        "gaussian",
        "uniform",
        "zipf",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_ids": 3, "max_ids": 2}, r"random\.sparse a: min_ids 3, max_ids 2; 0 <= min_ids"),
        ({"min_ids": -1}, "min_ids -1, max_ids 1; 0 <= min_ids <= max_ids is allowed"),
        ({"exponent": 0}, "exponent 0, mean 0.5, std 0.1; exponent and std above 0"),
        ({"mean": 1.5}, "mean 1.5, std 0.1; exponent and std above 0 and below 100, mean 0"),
        ({"std": float("nan")}, "std nan; exponent and std above 0"),
    ],
)
def test_a_group_that_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        IdConfig(features=("a",), **changes)


def test_a_feature_stands_in_one_group():
    groups = ({"features": ["a", "b"]}, {"features": ["b"]})
    with pytest.raises(ConfigError, match=r"random: random\.sparse: feature 'b' stands 2 times"):
        from_tree({"sparse": groups}, RandomConfig, "random")


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_label_rate_is_a_share(rate):
    with pytest.raises(ConfigError, match=r"random\.label_rate is .*; 0 \.\. 1 is allowed"):
        RandomConfig(label_rate=rate)
