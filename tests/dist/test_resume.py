"""A run of several ranks goes on from its checkpoint, on as many ranks or on others."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.data.dataset import Dataset
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.layout import layout_of
from fastdlrm.parallel.plan import (
    ShardingPlan,
    TablePlan,
    column_wise,
    data_parallel,
    row_wise,
    table_wise,
    write_plan,
)
from fastdlrm.parallel.world import World
from fastdlrm.train import matmul
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.sharding import shard
from fastdlrm.train.loop import Progress
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_dataset, tiny_recipe
from tests.dist.ranks import Ranks

# Records end at steps 10, 20, 30: where a run stops, losses since the last one are not recorded yet.
SETTINGS = (
    "train.global_batch_size=64",
    "train.max_steps=30",
    "train.log_every_steps=10",
    "train.evaluate_every_steps=100",
    "train.checkpoint_every_steps=4",
    "model.dropout=0.2",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("resume"), 3000).folder


def mixed_plan(config: ModelConfig, dataset: Dataset, num_ranks: int, shift: int) -> ShardingPlan:
    """Tables in turn under every sharding."""
    layout = layout_of(config, dataset.schema, dataset.manifest.encoding)
    sizes, D = layout.num_embeddings, config.embedding_dim
    ranks = list(range(num_ranks))

    def table(k: int, num_rows: int, dim: int) -> TablePlan:
        kinds = (
            lambda: row_wise(num_rows, dim, ranks),
            lambda: column_wise(num_rows, dim, ranks),
            lambda: table_wise(num_rows, dim, k % num_ranks),
            data_parallel,
        )
        return kinds[(k + shift) % 4]()

    tables = {
        name: table(k, num_rows, layout.dims[name])
        for k, (name, num_rows) in enumerate(sizes.items())
    }
    return ShardingPlan(
        world_size=num_ranks,
        embedding_dim=D,
        num_embeddings=sizes,
        tables=tables,
        table_dims=layout.narrow_dims,
    )


def train_part(
    folder: Path, data: Path, stop: int | None, shift: int, recipe: Recipe | None = None
) -> None:
    """Create a run or go on with it, to its end or until a signal at a step."""
    recipe, dataset = recipe or tiny_recipe(*SETTINGS), Dataset.open(data)

    def interrupt(progress: Progress) -> None:
        if progress.step == stop:
            signal.raise_signal(signal.SIGTERM)

    with World.of_environment() as world:
        path = None
        if world.size > 1:
            path = folder.with_name("plan.json")
            made = mixed_plan(recipe.model, dataset, world.size, shift)
            world.on_first(lambda: write_plan(path, made))
        sharding = shard(recipe, dataset, world, torch.device("cpu"), path)
        make = Run.resume if (folder / "manifest.json").exists() else Run.create
        run = world.on_first(lambda: make(folder, recipe, dataset))
        result = Trainer(run, dataset, interrupt, world=world, sharding=sharding).train()
    assert (result.step, result.is_finished) == ((stop, False) if stop else (30, True))


def outcome(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[object]]:
    tensors = store.load(Run.open(folder).checkpoint_folder("last")).tensors
    lines = (folder / "records.jsonl").read_text().splitlines()
    return tensors, [{**json.loads(line), "timing": None} for line in lines]


def test_as_many_ranks_take_the_very_steps(ranks: Ranks, data: Path, tmp_path: Path) -> None:
    ranks.run(train_part, 2, tmp_path / "whole", data, None, 0)
    Run.create(tmp_path / "parts", tiny_recipe(*SETTINGS), Dataset.open(data))
    shutil.copy(tmp_path / "whole" / matmul.FILE, tmp_path / "parts")  # it is chosen by timing
    ranks.run(train_part, 2, tmp_path / "parts", data, 16, 0)
    ranks.run(train_part, 2, tmp_path / "parts", data, None, 0)
    (found, lines), (expected, expected_lines) = (
        outcome(tmp_path / name) for name in ("parts", "whole")
    )
    assert lines == expected_lines
    for group, named in expected.items():
        for name, tensor in named.items():
            assert torch.equal(found[group][name], tensor), f"{group}/{name}"


def test_other_ranks_go_on(ranks: Ranks, data: Path, tmp_path: Path) -> None:
    """Four ranks, then two, then one: what one process learns, but for rounding."""
    recipe = tiny_recipe(*SETTINGS, "model.dropout=0.0", "model.weighted_pooling=learned")
    for size, stop in ((4, 8), (2, 16)):
        ranks.run(train_part, size, tmp_path / "parts", data, stop, size, recipe)
    train_part(tmp_path / "parts", data, None, 0, recipe)
    train_part(tmp_path / "one", data, None, 0, recipe)
    (found, lines), (expected, expected_lines) = (
        outcome(tmp_path / name) for name in ("parts", "one")
    )
    losses, expected_losses = (
        [line["values"]["loss"] for line in some if line["kind"] == "train"]
        for some in (lines, expected_lines)
    )
    assert len(losses) == 3
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for group in ("model", "sparse_optimizer", "dense_optimizer"):
        for name, tensor in expected[group].items():
            largest = max(float(tensor.abs().max()), 0.1)
            torch.testing.assert_close(
                found[group][name], tensor, rtol=1e-4, atol=1e-5 * largest, msg=name
            )
