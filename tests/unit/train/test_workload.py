"""A config and a dataset as numbers, by hand; memory beside the plan of a run."""

from pathlib import Path

import msgspec
import pytest
import torch

from fastdlrm.batch import SparseBatch
from fastdlrm.contracts.encoding import Encoding, TableEncoding
from fastdlrm.contracts.schema import Label, Schema, SparseFeature, Table
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.parallel.plan import round_robin
from fastdlrm.parallel.prediction import predict
from fastdlrm.parallel.topology import named_topology
from fastdlrm.train.memory import memory_plan
from fastdlrm.train.workload import workload, workload_of
from tests.builders import tiny_dataset, tiny_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"), 2000)


def test_sizes_are_the_datasets(dataset: Dataset) -> None:
    recipe = tiny_recipe("train.precision='bf16'", "train.table_dtype='fp16'")
    found = workload_of(recipe, dataset)
    tables = dataset.manifest.encoding.tables
    assert found.num_embeddings == {name: t.num_embeddings for name, t in tables.items()}
    assert [f.table for f in found.features] == [f.table for f in dataset.schema.sparse]
    N, F, D = len(dataset.schema.dense), len(dataset.schema.sparse), recipe.model.embedding_dim
    assert found.bottom_mlp == (N, *recipe.model.bottom_mlp)
    pairs = F * (F + 1) // 2
    assert found.top_mlp == (D + pairs, *recipe.model.top_mlp, 1)
    assert found.interaction.flop == 2 * pairs * D
    assert (found.precision, found.table_dtype, found.exchange_bytes) == ("bf16", "fp16", 2)
    assert all(f.ids_per_sample == 1 and not f.is_bag for f in found.features)
    assert all(sum(f.shares) == pytest.approx(1) for f in found.features)


def test_narrow_tables_and_their_projection(dataset: Dataset) -> None:
    keys = ("model.table_dims={C1=1, C2=3, C5=4}", "model.table_projection=true")
    plain, found = workload_of(tiny_recipe(), dataset), workload_of(tiny_recipe(*keys), dataset)
    assert found.table_dims == {"C1": 1, "C2": 3}
    assert [found.dim_of(table) for table in ("C1", "C2", "C5", "C6")] == [1, 3, 4, 4]
    # matrices 4 x 1 and 4 x 3, one feature each
    assert found.interaction.num_parameters - plain.interaction.num_parameters == 16
    assert found.interaction.flop - plain.interaction.flop == 2 * 16
    assert found.interaction.num_kept - plain.interaction.num_kept == 2 * 6 * 4


def test_skew_is_that_of_the_rows(dataset: Dataset) -> None:
    """Fewer rows than are sampled: the shares are exact."""
    found = workload_of(tiny_recipe(), dataset).features[0]
    rows = dataset.split("train")
    ids = rows.batch(slice(0, len(rows))).sparse.ids[: len(rows)]
    assert found.shares[0] == pytest.approx(float((ids == 0).double().mean()))
    assert found.shares[2] == pytest.approx(float(((ids >= 3) & (ids <= 6)).double().mean()))


def test_bags_by_hand() -> None:
    """Two samples: feature x has the bags (0, 3) and (6), feature y two empty ones."""
    sample = SparseBatch(
        ids=torch.tensor([0, 3, 6], dtype=torch.int32),
        lengths=torch.tensor([2, 1, 0, 0], dtype=torch.int32),
        weights=None,
        num_features=2,
    )
    schema = Schema(
        label=Label(column="y", positive=("1",), negative=("0",)),
        dense=(),
        sparse=tuple(
            SparseFeature(name=name, column=name, table="t", key="int", bag=True)
            for name in ("x", "y")
        ),
        tables=(Table(name="t", encoding="hash", min_count=1, max_rows=8),),
    )
    table = TableEncoding(num_embeddings=8, vocabulary="", coverage=1.0)
    encoding = Encoding(hash_version=1, dense={}, quantiles={}, tables={"t": table})
    recipe = tiny_recipe("model.bottom_mlp=[]", "model.interaction='cat'")
    found = workload(recipe, schema, encoding, sample)
    x, y = found.features
    assert (x.ids_per_sample, x.is_bag) == (1.5, True)
    # row 0; rows 1, 2; rows 3 .. 6
    assert x.shares == pytest.approx((1 / 3, 0, 2 / 3))
    assert (y.ids_per_sample, y.shares) == (0, ())
    assert found.bottom_mlp == ()
    assert found.interaction.flop == 0
    assert found.top_mlp[0] == 2 * recipe.model.embedding_dim


def test_a_cross_network_is_planned_for(dataset: Dataset) -> None:
    recipe = tiny_recipe(
        "model.interaction='cross'", "model.num_cross_layers=2", "model.cross_rank=3"
    )
    found = workload_of(recipe, dataset)
    width = 4 * (len(dataset.schema.sparse) + 1)
    assert found.top_mlp[0] == width
    # two layers of width x 3 and 3 x width, and width products
    assert found.interaction.flop == 2 * 2 * (7 * width)
    assert found.interaction.num_parameters == 2 * 7 * width
    assert found.interaction.num_kept == 2 * (2 * width + 3)


def test_tables_in_host_memory_are_not_planned(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"train.table_placement is 'host': tables are planned"):
        workload_of(tiny_recipe("train.table_placement='host'"), dataset)


def test_a_dataset_without_train_rows(dataset: Dataset, tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(dataset.manifest, splits={})
    with pytest.raises(DataError, match="no split 'train'"):
        workload_of(tiny_recipe(), Dataset(tmp_path, manifest))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_rank_holds_what_a_run_does(device: str, dataset: Dataset) -> None:
    """The two plans of memory agree where both apply: one rank, single ids."""
    recipe = tiny_recipe("train.precision='bf16'", "train.sparse_optimizer.name='adam'")
    found = workload_of(recipe, dataset)
    topology = named_topology("cpu" if device == "cpu" else "h100x1")
    plan = round_robin(found.num_embeddings, found.embedding_dim, 1)
    rank = predict(plan, found, topology).ranks[0]
    items = memory_plan(recipe, dataset.schema, dataset.manifest.encoding, torch.device(device))
    place = "host" if device == "cpu" else "GPU"
    held = sum(item.num_bytes for item in items if item.place == place)
    assert rank.total_bytes == pytest.approx(held, abs=len(items))
