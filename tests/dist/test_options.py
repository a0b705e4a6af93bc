"""Every option the whole way: trained, resumed, sharded, exported, quantised, served."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fastdlrm.config import load_config
from fastdlrm.data.dataset import Dataset
from fastdlrm.export.model import ExportedModel
from fastdlrm.train import matmul
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from tests.builders import invoke
from tests.dist.ranks import Ranks
from tests.dist.test_resume import SETTINGS, outcome, train_part
from tests.e2e.serving import ServerProcess, columns_body, golden_rows, scores_of, served
from tests.e2e.test_serving_parity import BAGS, Log, bags
from tests.options import CASES, overrides

pytestmark = pytest.mark.xdist_group("options")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return bags(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def data(log: Log) -> Path:
    folder = log.files[0].parent / "data"
    inputs = [word for file in log.files for word in ("--input", file)]
    invoke("prepare", "--config", BAGS, *inputs, "--out", folder)
    return folder


class Repository:
    """A server's models, which come one by one; the first starts the server."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._server: ServerProcess | None = None

    def served(self, model: Path, name: str) -> ServerProcess:
        """A server that serves a model under a name."""
        models = self._folder / "models"
        shutil.copytree(model, models / name / "1")
        if self._server is None:
            starting = served(models, self._folder / "log")
            self._server = self._stack.enter_context(starting)
        assert self._server.ask("POST", f"/v2/repository/models/{name}/load").status == 200
        return self._server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    with contextlib.ExitStack() as stack:
        yield Repository(tmp_path_factory.mktemp("served"), stack)


@pytest.mark.parametrize("case", CASES)
def test_the_whole_way(
    case: str,
    ranks: Ranks,
    log: Log,
    data: Path,
    repository: Repository,
    tmp_path: Path,
) -> None:
    keys = [*SETTINGS, "train.num_epochs=2", "model.dropout=0.0", *overrides(case)]
    recipe = load_config(str(BAGS), Recipe, keys)
    resumes(recipe, data, tmp_path)
    ranks.run(train_part, 2, tmp_path / "sharded", data, None, 0, recipe)
    learns_the_same(tmp_path / "sharded", tmp_path / "whole")
    models = tmp_path / "models"
    scores_as_trained(tmp_path / "sharded", data, log.files[-1], models / "exact")
    coarse(tmp_path / "sharded", data, models)
    columns, scores = golden_rows(models / "exact")
    answer = repository.served(models / "exact", case).infer(columns_body(columns), model=case)
    assert answer.status == 200, answer.body
    assert (scores_of(answer) == scores).all()


def resumes(recipe: Recipe, data: Path, folder: Path) -> None:
    """A run that was stopped and went on holds what one in one go holds, in every bit."""
    train_part(folder / "whole", data, None, 0, recipe)
    Run.create(folder / "resumed", recipe, Dataset.open(data))
    shutil.copy(folder / "whole" / matmul.FILE, folder / "resumed")  # it is chosen by timing
    train_part(folder / "resumed", data, 16, 0, recipe)
    train_part(folder / "resumed", data, None, 0, recipe)
    (expected, lines), (found, resumed_lines) = (
        outcome(folder / name) for name in ("whole", "resumed")
    )
    assert resumed_lines == lines
    for group, named in expected.items():
        for name, tensor in named.items():
            assert torch.equal(found[group][name], tensor), f"{group}/{name}"


def learns_the_same(sharded: Path, whole: Path) -> None:
    """On two ranks as on one, but for rounding."""
    (found, lines), (expected, expected_lines) = outcome(sharded), outcome(whole)
    losses, expected_losses = (
        [line["values"]["loss"] for line in some if line["kind"] == "train"]
        for some in (lines, expected_lines)
    )
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert found["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(found["model"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def scores_as_trained(run: Path, data: Path, log: Path, model: Path) -> None:
    """In float32 the exported model's scores are the run's in every bit."""
    export = ("export", "--run", run, "--data", data, "--out", model, "--json")
    plain, ours = json.loads(invoke(*export))["quality"]
    assert ours["max_logit_difference"] == 0
    assert plain["auc"] == ours["auc"]
    tables = []
    for flag, of in (("run", run), ("model", model)):
        out = run.with_name(f"{flag}.parquet")
        invoke("predict", f"--{flag}", of, "--input", log, "--out", out)
        tables.append(pq.read_table(out))
    assert tables[0].num_rows > 1000
    assert tables[0].equals(tables[1])


def coarse(run: Path, data: Path, models: Path) -> None:
    """In other types within what export allows."""
    export = ("export", "--run", run, "--data", data)
    precision = ("--tables", "int8", "--mlp", "bf16", "--max-auc-drop", "0.1", "--max-ne-rise", "1")
    invoke(*export, *precision, "--out", models / "coarse")
    smaller = ExportedModel.load(models / "coarse")
    rows = smaller.golden()
    exact = ExportedModel.load(models / "exact").predict_raw(rows)
    assert abs(smaller.predict_raw(rows) - exact).max() < 0.05
