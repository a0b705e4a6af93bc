"""What `eval` prints of a split whose metrics do not all exist."""

import json

import pytest

from fastdlrm.cli.evaluate import evaluate
from fastdlrm.contracts.processor import processor_name
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.metrics.eval_result import read_eval_result
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset whose test rows, those of the last file, have no positive, and a run on it."""
    folder = tmp_path_factory.mktemp("evaluate")
    generate(folder / "log", num_rows=1000, num_files=2, gzip=False, seed=7)
    inputs = [folder / "log" / f"day_{day}.tsv" for day in range(2)]
    lines = inputs[1].read_text().splitlines(keepends=True)
    inputs[1].write_text("".join(f"0{line[1:]}" for line in lines))
    recipe = tiny_recipe("data.split.test={by='file', amount=1}", "train.max_steps=1")
    prepare(inputs, recipe.data, folder / "data", memory_bytes=2**30)
    dataset = Dataset.open(folder / "data")
    Trainer(Run.create(folder / "run", recipe, dataset), dataset).train()
    return folder


def test_a_metric_that_does_not_exist_says_why(folder, capsys):
    evaluate(folder / "run", folder / "data")
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    for name in ("auc", "ne", "calibration", "pr_auc"):
        assert lines[name] == "undefined (one class only)"
    assert float(lines["log_loss"]) > 0
    assert (lines["num_samples"], lines["num_positives"]) == ("500", "0")


def test_json_has_null_for_it(folder, capsys):
    evaluate(folder / "run", folder / "data", json=True)
    values = json.loads(capsys.readouterr().out)
    assert [values[name] for name in ("auc", "ne", "calibration", "pr_auc")] == [None] * 4


def test_the_file_says_what_was_evaluated(folder, tmp_path, capsys):
    out = tmp_path / "eval.json"
    evaluate(folder / "run", folder / "data", out=out)
    found = read_eval_result(out)
    assert (found.run, found.split, found.step) == (str(folder / "run"), "test", 1)
    assert (found.values.num_samples, found.values.roc) == (500, None)
    assert found.config["train"]["max_steps"] == 1
    assert found.machine == Run.open(folder / "run").manifest.machine == processor_name()
