"""Every interaction through the whole house: trained, resumed, sharded, exported, predicted."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fastdlrm.data.dataset import Dataset
from fastdlrm.export.model import ExportedModel
from fastdlrm.train import matmul
from fastdlrm.train.run import Run
from tests.builders import invoke, tiny_dataset, tiny_recipe
from tests.dist.ranks import Ranks
from tests.dist.test_resume import SETTINGS, outcome, train_part
from tests.interactions import SETTINGS as INTERACTIONS
from tests.interactions import settings

DIM = 4
"""Of the preset `tiny`."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("interactions"), 3000).folder


def overrides(name: str) -> tuple[str, ...]:
    """Of the preset: the interaction, and no dropout, so that the step's own head computes."""
    keys = {"dropout": 0.0, **settings(name, DIM)}
    return tuple(f"model.{key}={json.dumps(value)}" for key, value in keys.items())


def train_losses(lines: list[object]) -> list[float]:
    return [line["values"]["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("name", INTERACTIONS)
def test_the_whole_way(name: str, ranks: Ranks, data: Path, tmp_path: Path) -> None:
    names = go_the_whole_way(overrides(name), ranks, data, tmp_path)
    assert any(n.startswith("interaction.") for n in names) == (name in ("cross", "projection"))


def go_the_whole_way(
    keys: Sequence[str], ranks: Ranks, data: Path, tmp_path: Path
) -> dict[str, torch.Tensor]:
    """Train, resume, train on two ranks, export and predict; what the model is made of."""
    train_part(tmp_path / "whole", data, None, 0, *keys)
    expected, lines = outcome(tmp_path / "whole")
    Run.create(tmp_path / "resumed", tiny_recipe(*SETTINGS, *keys), Dataset.open(data))
    shutil.copy(tmp_path / "whole" / matmul.FILE, tmp_path / "resumed")  # it is chosen by timing
    train_part(tmp_path / "resumed", data, 16, 0, *keys)
    train_part(tmp_path / "resumed", data, None, 0, *keys)
    found, resumed_lines = outcome(tmp_path / "resumed")
    assert resumed_lines == lines
    for group, named in expected.items():
        for tensor_name, tensor in named.items():
            assert torch.equal(found[group][tensor_name], tensor), f"{group}/{tensor_name}"

    ranks.run(train_part, 2, tmp_path / "sharded", data, None, 0, *keys)
    sharded, sharded_lines = outcome(tmp_path / "sharded")
    assert train_losses(sharded_lines) == pytest.approx(train_losses(lines), rel=1e-5)
    for tensor_name, tensor in expected["model"].items():
        torch.testing.assert_close(
            sharded["model"][tensor_name], tensor, rtol=1e-3, atol=1e-4, msg=tensor_name
        )
    exported_as_trained(tmp_path, data)
    return expected["model"]


def exported_as_trained(folder: Path, data: Path) -> None:
    """In float32 scores are the run's in every bit; in other types within what export allows."""
    log = sorted((data.parent / "log").glob("day_*"))[-1]
    run, model = folder / "sharded", folder / "model"
    export = ("export", "--run", run, "--data", data)
    plain, ours = json.loads(invoke(*export, "--out", model, "--json"))["quality"]
    assert ours["max_logit_difference"] == 0
    assert plain["auc"] == ours["auc"]
    tables = [
        pq.read_table(folder / f"{flag}.parquet")
        for flag, of in (("run", run), ("model", model))
        if invoke("predict", f"--{flag}", of, "--input", log, "--out", folder / f"{flag}.parquet")
    ]
    assert tables[0].num_rows > 1000
    assert tables[0].equals(tables[1])
    coarse = ("--tables", "int8", "--mlp", "bf16", "--max-auc-drop", "0.1", "--max-ne-rise", "0.1")
    invoke(*export, *coarse, "--out", folder / "coarse")
    smaller = ExportedModel.load(folder / "coarse")
    rows = smaller.golden()
    exact = ExportedModel.load(model).predict_raw(rows)
    assert abs(smaller.predict_raw(rows) - exact).max() < 0.05
