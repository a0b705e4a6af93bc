"""From config and schema to a model: widths, seeds and the errors of a config that does not fit."""

import pytest
import torch

from fastdlrm.batch import SparseBatch
from fastdlrm.contracts.encoding import Encoding, TableEncoding
from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.errors import ConfigError
from fastdlrm.model.build import build_dlrm
from fastdlrm.model.config import ModelConfig


def make_schema(num_dense: int, num_sparse: int, names: tuple[str, ...] = ()) -> Schema:
    names = names or tuple(f"t{k}" for k in range(num_sparse))
    return Schema(
        label=Label(column="y", positive=("1",), negative=("0",)),
        dense=tuple(
            DenseFeature(name=f"d{k}", column=f"d{k}", transform="none", fill=0.0)
            for k in range(num_dense)
        ),
        sparse=tuple(
            SparseFeature(name=f"s{k}", column=f"s{k}", table=names[k], key="int")
            for k in range(num_sparse)
        ),
        tables=tuple(
            Table(name=names[k], encoding="hash", min_count=1, max_rows=10 + k)
            for k in range(num_sparse)
        ),
    )


def make_encoding(schema: Schema) -> Encoding:
    tables = {
        t.name: TableEncoding(num_embeddings=t.max_rows, vocabulary="", coverage=1.0)
        for t in schema.tables
    }
    return Encoding(hash_version=1, dense={}, quantiles={}, tables=tables)


def build(num_dense: int, num_sparse: int, seed: int = 0, **config: object):
    schema = make_schema(num_dense, num_sparse)
    config = {"embedding_dim": 4, "bottom_mlp": (8, 4), "top_mlp": (6,), **config}
    return build_dlrm(ModelConfig(**config), schema, make_encoding(schema), seed)


@pytest.mark.parametrize(
    ("num_dense", "config", "width"),
    [
        (2, {}, 4 + 6),  # 4 vectors: 4 * 3 / 2 pairs
        (2, {"include_diagonal": True}, 4 + 10),  # 4 * 5 / 2
        (2, {"interaction": "cat"}, 16),
        (0, {"bottom_mlp": ()}, 3),  # 3 vectors: 3 pairs
        (0, {"bottom_mlp": (), "interaction": "cat"}, 12),
    ],
)
def test_width_of_the_top_mlp(num_dense: int, config: dict[str, object], width: int) -> None:
    model = build(num_dense, 3, **config)
    assert model.top_mlp[0].in_features == width
    ids = torch.zeros(3 * 5, dtype=torch.int32)
    sparse = SparseBatch(ids=ids, lengths=None, weights=None, num_features=3)
    assert model(torch.randn(5, num_dense), sparse).shape == (5,)


def test_table_sizes_come_from_the_encoding() -> None:
    assert build(2, 3).tables.num_embeddings == {"t0": 10, "t1": 11, "t2": 12}


def test_narrow_tables_are_drawn_in_the_order_of_all() -> None:
    model = build(2, 3, table_dims={"t0": 1, "t2": 1})
    tables = model.tables.state_tensors()
    assert {name: tuple(t.shape) for name, t in tables.items()} == {
        "t0": (10, 1),
        "t1": (11, 4),
        "t2": (12, 1),
    }
    generator = torch.Generator().manual_seed(0)
    for table in tables.values():
        bound = (1 / len(table)) ** 0.5
        drawn = torch.empty(table.shape).uniform_(-bound, bound, generator=generator)
        assert torch.equal(table, drawn)
    assert list(model.state_tensors())[-3:] == ["tables.t0", "tables.t1", "tables.t2"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_narrow_vectors_are_zero_beyond_their_width(dtype: torch.dtype | None) -> None:
    model = build(2, 3, table_dims={"t1": 3})
    ids = torch.tensor([1, 2, 3, 4, 5, 6], dtype=torch.int32)
    sparse = SparseBatch(ids=ids, lengths=None, weights=None, num_features=3)
    pooled, tables = model.tables(sparse, dtype), model.tables.state_tensors()
    assert pooled.dtype == (dtype or torch.float32)
    assert torch.equal(pooled[:, 0], tables["t0"][[1, 2]].to(pooled.dtype))
    assert torch.equal(pooled[:, 1, :3], tables["t1"][[3, 4]].to(pooled.dtype))
    assert torch.equal(pooled[:, 2], tables["t2"][[5, 6]].to(pooled.dtype))
    assert not pooled[:, 1, 3:].any()


def test_all_tables_may_be_narrow() -> None:
    model = build(2, 2, table_dims={"t0": 3, "t1": 3})
    ids = torch.zeros(2, dtype=torch.int32)
    pooled = model.tables(SparseBatch(ids=ids, lengths=None, weights=None, num_features=2))
    assert pooled.shape == (1, 2, 4)
    assert not pooled[:, :, 3:].any()


def test_table_dims_fit_the_tables() -> None:
    for dim in (0, 5):
        with pytest.raises(ConfigError, match=rf"table_dims.t0 is {dim}; 1 .. embedding_dim \(4\)"):
            build(2, 2, table_dims={"t0": dim})
    with pytest.raises(ConfigError, match=r"table_dims.x: no such table; the dataset has t0, t1"):
        build(2, 2, table_dims={"x": 2})


def test_options_reach_the_layers() -> None:
    names = [type(m).__name__ for m in build(2, 3, norm="layer", dropout=0.5).top_mlp]
    assert names == ["Linear", "LayerNorm", "ReLU", "Dropout", "Linear"]
    assert build(2, 3, pooling="mean").tables.pooling == "mean"
    weights = build(2, 3, init="normal", embedding_std=1e-6).tables.weight
    assert weights.abs().max() < 1e-5


def test_dense_features_take_part_linearly() -> None:
    """Logistic regression: twice the features, twice what they add to the logit."""
    model = build(
        2, 3, embedding_dim=1, bottom_mlp=(1,), bottom_relu=False, top_mlp=(), interaction="fm"
    )
    assert [type(m).__name__ for m in model.bottom_mlp] == ["Linear"]
    (output,) = model.top_mlp
    assert output.weight.tolist() == [[1.0]]
    ids = torch.zeros(3, dtype=torch.int32)
    sparse = SparseBatch(ids=ids, lengths=None, weights=None, num_features=3)
    (dense,) = model.bottom_mlp
    assert dense.weight.tolist() == [[0.0, 0.0]]
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[0.3, -0.2]]))
    rows = [model.tables.table(name)[0].item() for name in ("t0", "t1", "t2")]
    for x in (torch.tensor([[1.0, -3.0]]), torch.tensor([[-2.0, 6.0]])):
        expected = (x @ dense.weight.T + dense.bias).item() + sum(rows) + output.bias.item()
        assert model(x, sparse).item() == pytest.approx(expected, rel=1e-5)


def test_a_linear_layer_ends_the_bottom_mlp_behind_others() -> None:
    model = build(2, 3, bottom_relu=False, norm="layer")
    names = ["Linear", "LayerNorm", "ReLU", "Linear"]
    assert [type(m).__name__ for m in model.bottom_mlp] == names


def test_the_deep_mlp_has_the_others_options() -> None:
    model = build(2, 3, deep_mlp=(5,), norm="layer", dropout=0.5)
    names = ["Linear", "LayerNorm", "ReLU", "Dropout"]
    assert [type(m).__name__ for m in model.interaction.deep_mlp] == names


def test_the_output_layer_adds_to_a_logit() -> None:
    output = build(2, 3, interaction="fm", deep_mlp=(5,), top_mlp=()).top_mlp[0]
    assert output.weight[0, 0] == 1
    assert (output.weight[0, 1:] != 1).all()


def test_dense_features_begin_as_0_in_a_logit_but_not_behind_a_relu() -> None:
    linear = build(2, 3, interaction="fm", top_mlp=(), bottom_relu=False).bottom_mlp[-1]
    assert not linear.weight.any()
    assert not linear.bias.any()
    model = build(2, 3, interaction="fm", top_mlp=())
    assert (model.bottom_mlp[-2].weight != 0).all()
    plain = build(2, 3, bottom_relu=False).bottom_mlp[-1]
    assert (plain.weight != 0).all()


def test_a_seed_is_a_model() -> None:
    before = torch.get_rng_state()
    one, two, other = build(2, 3, seed=1), build(2, 3, seed=1), build(2, 3, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.tables.weight, other.tables.weight)


def test_tables_are_pooled_as_the_config_says() -> None:
    # bags of one table each: ids 1, 1 and 2, 2, then 3, 3
    sparse = SparseBatch(
        ids=torch.tensor([1, 1, 2, 2, 3, 3], dtype=torch.int32),
        lengths=torch.tensor([2, 2, 2], dtype=torch.int32),
        weights=None,
        num_features=3,
    )
    tables = build(2, 3, pooling="mean", table_pooling={"t1": "sum", "t2": "mean"}).tables
    expected = [tables.table("t0")[1], 2 * tables.table("t1")[2], tables.table("t2")[3]]
    torch.testing.assert_close(tables(sparse)[0].detach(), torch.stack(expected))


def test_pooling_of_no_table() -> None:
    message = "model.table_pooling.tea: no such table; the dataset has t0, t1, t2"
    with pytest.raises(ConfigError, match=message):
        build(2, 3, table_pooling={"t1": "sum", "tea": "mean"})


def test_dense_features_need_a_bottom_mlp() -> None:
    message = r"bottom_mlp is empty, the dataset has 2 dense features; set .* = \[4\]"
    with pytest.raises(ConfigError, match=message):
        build(2, 3, bottom_mlp=())


def test_a_bottom_mlp_needs_dense_features() -> None:
    with pytest.raises(
        ConfigError, match=r"bottom_mlp is \[8, 4\], .* no dense feature; set .*\[\]"
    ):
        build(0, 3)


@pytest.mark.parametrize(("num_dense", "num_sparse"), [(2, 0), (0, 1)])
def test_dot_needs_two_vectors(num_dense: int, num_sparse: int) -> None:
    bottom = (4,) if num_dense else ()
    with pytest.raises(ConfigError, match=r"'dot' with 1 vector .* set model.interaction = 'cat'"):
        build(num_dense, num_sparse, bottom_mlp=bottom)
    assert build(num_dense, num_sparse, bottom_mlp=bottom, interaction="cat")
