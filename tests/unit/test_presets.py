import pytest

from fastdlrm.config import from_tree, load_config, preset_names, to_tree
from fastdlrm.train.recipe import Recipe


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_decodes_and_round_trips(name):
    recipe = load_config(name, Recipe)
    assert recipe.data.schema().label.positive
    assert from_tree(to_tree(recipe), Recipe, name) == recipe


def test_the_presets_there_are():
    criteo = ["binary", "generated", "kaggle", "sample", "terabyte", "terabyte-parquet"]
    criteo = [f"criteo-{name}" for name in criteo]
    assert preset_names() == ["adult", "avazu", *criteo, "movielens", "random", "tiny"]


@pytest.mark.parametrize("name", preset_names())
def test_no_preset_numbers_as_the_reference(name):
    """Its vocabularies hold the values of test rows."""
    tables = load_config(name, Recipe).data.schema().tables
    assert "reference" not in {table.encoding for table in tables}
