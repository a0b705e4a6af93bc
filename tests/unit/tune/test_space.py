"""What is written becomes a space, and values of a space a config."""

import pytest

from fastdlrm.config import load_config, to_tree
from fastdlrm.contracts.study import Choice, Range, Variant
from fastdlrm.errors import ConfigError
from fastdlrm.train.recipe import Recipe
from fastdlrm.tune.space import keys_of, read_space, recipe_of
from tests.builders import tiny_recipe

RATE = "train.dense_optimizer.learning_rate"
FILE = """
[range]
train.dense_optimizer.learning_rate = "log:1e-4..1e-1"
model.top_mlp.0 = "16..64:16"
[choice]
model.embedding_dim = [4, 8]
[variant.interaction]
dot = { "model.interaction" = "dot" }
cross = { "model.interaction" = "cross", "model.num_cross_layers" = 2, "model.cross_rank" = 3 }
[same]
train.sparse_optimizer.learning_rate = "train.dense_optimizer.learning_rate"
"""


def space(*, ranges=(), choices=(), base=None):
    return read_space(None, ranges, choices, base or tiny_recipe())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(FILE)
    return path


def test_a_file(file):
    found = read_space(file, (), (), tiny_recipe())
    assert found.parameters == {
        RATE: Range(low=1e-4, high=1e-1, is_log=True),
        "model.top_mlp.0": Range(low=16, high=64, step=16, is_integer=True),
        "model.embedding_dim": Choice(values=(4, 8)),
        "interaction": Variant(
            options={
                "dot": {"model.interaction": "dot"},
                "cross": {
                    "model.interaction": "cross",
                    "model.num_cross_layers": 2,
                    "model.cross_rank": 3,
                },
            }
        ),
    }
    assert "model.cross_rank" in keys_of(found)
    assert "train.sparse_optimizer.learning_rate" in keys_of(found)


def test_flags_add_to_a_file(file):
    choices = ["train.dense_optimizer.name=adam, sgd", "model.bottom_mlp=[16,4],[4]"]
    found = read_space(file, ["model.dropout=0..0.5"], choices, tiny_recipe()).parameters
    # dropout is a fraction in the config, so that 0..1 would mean fractions, too
    assert found["model.dropout"] == Range(low=0, high=0.5)
    assert found["train.dense_optimizer.name"] == Choice(values=("adam", "sgd"))
    assert found["model.bottom_mlp"] == Choice(values=([16, 4], [4]))


def test_values_make_a_config(file):
    base = tiny_recipe()
    found = read_space(file, (), (), base)
    values = {RATE: 0.02, "model.top_mlp.0": 48, "model.embedding_dim": 8, "interaction": "cross"}
    recipe = recipe_of(base, found, values)
    assert recipe.train.dense_optimizer.learning_rate == 0.02
    assert recipe.train.sparse_optimizer.learning_rate == 0.02  # the same, by [same]
    assert recipe.model.top_mlp == (48,)
    assert (recipe.model.interaction, recipe.model.num_cross_layers) == ("cross", 2)
    # tiny ends in 4, its embedding_dim, so that it ends in 8 now
    assert (recipe.model.embedding_dim, recipe.model.bottom_mlp) == (8, (8, 8))
    assert base == tiny_recipe()
    assert recipe_of(base, found, {"interaction": "dot"}).model == base.model


def test_chosen_bottom_mlps_follow_too():
    base = tiny_recipe()
    found = space(choices=["model.embedding_dim=2,4", "model.bottom_mlp=[16,4],[4]"])
    values = {"model.embedding_dim": 2, "model.bottom_mlp": [16, 4]}
    assert recipe_of(base, found, values).model.bottom_mlp == (16, 2)


def test_projections_keep_their_multiples():
    base = tiny_recipe(
        "model.interaction=projection",
        "model.projection_branch1=[10, 8]",  # 2 embedding_dim
        "model.projection_branch2=[12]",  # 3
    )
    found = space(choices=["model.embedding_dim=4,16"], base=base)
    model = recipe_of(base, found, {"model.embedding_dim": 16}).model
    assert (model.projection_branch1, model.projection_branch2) == ((10, 32), (48,))


def test_widths_of_tables_are_worked_out_anew():
    base = tiny_recipe("model.mixed_dims={alpha=0.3}", "model.table_dims={C1=2}")
    found = space(ranges=["model.mixed_dims.alpha=0.1..0.5"], base=base)
    model = recipe_of(base, found, {"model.mixed_dims.alpha": 0.2}).model
    assert (model.mixed_dims.alpha, model.table_dims) == (0.2, {})


@pytest.mark.parametrize(
    ("ranges", "choices", "message"),
    [
        ((), (), "nothing to search; give --range KEY=LOW"),
        (("model.dropout",), (), "--range 'model.dropout': expected KEY="),
        (("model.dropout=0.5",), (), r"--range model\.dropout: '0\.5' is no range; LOW\.\.HIGH"),
        (("model.dropout=a..b",), (), "'a..b' is no range"),
        (("model.dropout=0.5..0",), (), "the low end must be below the high one"),
        (("model.dropout=log:0..0.5",), (), "log: takes a low end above 0, and no step"),
        (("model.dropout=0..0.5:0.2",), (), "steps of one size must lead from end to end"),
        (
            ("model.top_mlp.0=1.5..3",),
            (),
            r"range model\.top_mlp\.0: \[1\.5, 3, 1\]; it takes",
        ),
        (("model.norm=1..3",), (), "range model.norm: the config has 'none'; a choice is allowed"),
        (("model.width=1..3",), (), r"range model\.width: no section 'width'; known here: embed"),
        (("seed=1..3",), (), r"seed: not for a study to change; keys of \[model\] and \[train\]"),
        (("train.keep_checkpoints=1..3",), (), "not for a study to change"),
        (
            ("model.dropout=0..1",),
            (),
            r"dropout is 1\.0; .* a study tries model\.dropout 1\.0: ",
        ),
        (
            (),
            ("model.interaction=dot,cross",),
            r"let the keys that must change together be a \[",
        ),
        ((), ("model.embedding_dim=8",), "two values or more are allowed, each another"),
        ((), ("model.embedding_dim=8,8",), "two values or more are allowed, each another"),
        (("model.dropout=0..0.5",), ("model.dropout=0,1",), "model.dropout: given twice"),
    ],
)
def test_what_cannot_be_searched_is_told(ranges, choices, message):
    with pytest.raises(ConfigError, match=message):
        space(ranges=ranges, choices=choices)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[ranges]\na = '1..2'",
            "'ranges'; the sections range, choice, variant, same are",
        ),
        ("[range]\nmodel.dropout = 0.5", r"range model\.dropout is 0\.5; a text: LOW\.\.HIGH"),
        ("[choice]\nmodel.dropout = 0.5", r"choice model\.dropout is 0\.5; a list is allowed"),
        ("[variant]\na = 1", "variant a: 1; two options or more are allowed"),
        ("[variant.a]\nb = {}", "two options or more are allowed, each a name and its keys"),
        ("[same]\nmodel.dropout = 1", r"same model\.dropout is 1; name another key"),
        (
            "[choice]\nmodel.norm = ['none', 'batch']\n[variant.v]\n"
            "a = { 'model.norm' = 'none' }\nb = { 'model.norm' = 'batch' }",
            r"model\.norm: set by v and by model\.norm; leave one out",
        ),
        (
            "[choice]\nmodel.dropout = [0.1, 0.2]\n[same]\nmodel.dropout = 'model.embedding_std'",
            r"model\.dropout: set by model\.dropout and by same model\.dropout",
        ),
        (
            "[choice]\nmodel.dropout = [0.1, 0.2]\n[same]\nmodel.embedding_std = 'model.std'",
            r"same model\.embedding_std: no section 'std'",
        ),
    ],
)
def test_a_wrong_file_is_told(tmp_path, content, message):
    path = tmp_path / "space.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_space(path, (), (), tiny_recipe())


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        read_space(tmp_path / "none.toml", (), (), tiny_recipe())


def test_values_that_do_not_go_together_are_told():
    base = tiny_recipe()
    choices = ["train.global_batch_size=64,96", "train.gradient_accumulation_steps=1,64"]
    found = space(choices=choices)
    values = {"train.global_batch_size": 96, "train.gradient_accumulation_steps": 64}
    with pytest.raises(ConfigError, match=r"global_batch_size 96, .*steps 64: .*not a multiple"):
        recipe_of(base, found, values)
    assert to_tree(load_config("tiny", Recipe)) == to_tree(base)
