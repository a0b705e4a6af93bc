import pytest

from fastdlrm.config import from_tree, load_config, preset_names, to_toml, to_tree
from fastdlrm.data.random import RandomShape
from fastdlrm.errors import ConfigError
from fastdlrm.train.recipe import Recipe


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_decodes_and_round_trips(name, tmp_path):
    recipe = load_config(name, Recipe)
    assert recipe.data.schema().label.positive
    assert from_tree(to_tree(recipe), Recipe, name) == recipe
    file = tmp_path / "preset.toml"
    file.write_text(to_toml(recipe))
    assert load_config(str(file), Recipe) == recipe


def test_the_presets_there_are():
    criteo = ["binary", "generated", "kaggle", "sample", "terabyte", "terabyte-parquet"]
    criteo = [f"criteo-{name}" for name in criteo]
    studied = ["ncf", "random", "rmc1", "rmc1-paper", "rmc2", "rmc3", "tiny", "wnd"]
    mlperf = ["mlperf-dcnv2", "mlperf-dlrm-v1"]
    assert preset_names() == ["adult", "avazu", *criteo, *mlperf, "movielens", *studied]


def test_mlperfs_models_have_their_published_hyperparameters():
    """MLPerf Training's DLRM, v1, and DLRM-DCNv2, v2."""
    for name, batch, optimizer, rate, interaction in (
        ("mlperf-dlrm-v1", 2048, "sgd", 1.0, ("dot", 0, 0)),
        ("mlperf-dcnv2", 65536, "adagrad", 0.005, ("cross", 3, 512)),
    ):
        recipe = load_config(name, Recipe)
        model, train, schema = recipe.model, recipe.train, recipe.data.schema()
        assert {table.max_rows for table in schema.tables} == {40_000_000}
        assert (len(schema.dense), len(schema.sparse), model.embedding_dim) == (13, 26, 128)
        assert model.bottom_mlp == (512, 256, 128)
        assert model.top_mlp == (1024, 1024, 512, 256)
        assert (model.interaction, model.num_cross_layers, model.cross_rank) == interaction
        assert train.global_batch_size == batch
        for found in (train.dense_optimizer, train.sparse_optimizer):
            assert (found.name, found.learning_rate) == (optimizer, rate)


@pytest.mark.parametrize(
    ("name", "num_dense", "num_tables", "rows", "dim", "ids"),
    [
        ("rmc1", 128, 8, 4_000_000, 32, 80),
        ("rmc2", 256, 32, 500_000, 64, 120),
        ("rmc3", 2560, 10, 2_000_000, 32, 20),
        ("rmc1-paper", 128, 5, 100_000, 32, 80),
        ("wnd", 512, 27, 1_000_000, 32, 1),
    ],
)
def test_studied_models_have_their_published_shapes(name, num_dense, num_tables, rows, dim, ids):
    """Configs of harvard-acc/DeepRecSys, and the example of arXiv:1906.03109, 5.1."""
    recipe = load_config(name, Recipe)
    schema = recipe.data.schema()
    shape = RandomShape.of(schema, recipe.random)
    assert shape.num_dense == num_dense
    assert shape.tables == (rows,) * num_tables
    assert recipe.model.embedding_dim == dim
    assert {(group.min_ids, group.max_ids) for group in shape.ids} == {(ids, ids)}
    assert recipe.model.interaction == "cat"


def test_studied_models_have_their_published_slas():
    """Table II of arXiv:2001.02772, level medium, in ms."""
    slas = {"rmc1": 100, "rmc2": 400, "rmc3": 100, "ncf": 5, "wnd": 25, "rmc1-paper": None}
    assert {name: load_config(name, Recipe).sla_ms for name in slas} == slas


@pytest.mark.parametrize("sla_ms", ["0.0", "-1.0", "nan"])
def test_an_sla_is_above_0(sla_ms):
    with pytest.raises(ConfigError, match=r"sla_ms is .*; above 0 is allowed"):
        load_config("ncf", Recipe, [f"sla_ms={sla_ms}"])


def test_weights_are_learned_where_the_rows_lie():
    learned, host = "model.weighted_pooling=learned", "train.table_placement=host"
    load_config("ncf", Recipe, [learned])
    with pytest.raises(ConfigError, match=r"'learned' with .* 'host': .* set table_placement = 'd"):
        load_config("ncf", Recipe, [learned, host])


def test_ncf_has_two_tables_of_users_and_two_of_items():
    recipe = load_config("ncf", Recipe)
    shape = RandomShape.of(recipe.data.schema(), recipe.random)
    assert shape.tables == (140_000, 140_000, 28_000, 28_000)
    assert shape.num_dense == 0


@pytest.mark.parametrize("name", preset_names())
def test_no_preset_numbers_as_the_reference(name):
    """Its vocabularies hold the values of test rows."""
    tables = load_config(name, Recipe).data.schema().tables
    assert "reference" not in {table.encoding for table in tables}
