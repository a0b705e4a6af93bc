import pytest

from fastdlrm.config import from_tree, load_config, preset_names, to_tree
from fastdlrm.train.recipe import Recipe


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_decodes_and_round_trips(name):
    recipe = load_config(name, Recipe)
    assert recipe.data.schema().label.positive
    assert from_tree(to_tree(recipe), Recipe, name) == recipe


def test_the_presets_there_are():
    expected = ["adult", "criteo-generated", "criteo-kaggle", "criteo-sample", "random", "tiny"]
    assert preset_names() == expected
