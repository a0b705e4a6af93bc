"""MLPerf's log, by MLPerf's own compliance checker."""

import json

import pytest
from mlperf_logging.compliance_checker import mlp_compliance

from fastdlrm.cli.train import train
from fastdlrm.config import load_config
from fastdlrm.errors import ConfigError
from fastdlrm.train.mllog import Mllog, require_loggable
from fastdlrm.train.recipe import MlperfConfig, Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_dataset, tiny_recipe

RULES = "6.0.0"
"""The last that have dlrm_dcnv2."""
ADAGRAD = (
    "train.dense_optimizer={name='adagrad', learning_rate=0.005}",
    "train.sparse_optimizer={name='adagrad', learning_rate=0.005}",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("mllog"), 3000)


def logged(dataset, folder, target, division="open"):
    """A run of two epochs of twelve steps, evaluated every five; its log and its result."""
    settings = ("train.num_epochs=2", "train.max_steps=24", "train.evaluate_every_steps=5")
    recipe = tiny_recipe(*settings, *ADAGRAD, f"train.target_metric_value={target}")
    log = Mllog(folder / "mlperf.log")
    log.init_start(MlperfConfig(organization="us", division=division), "a machine")
    run = Run.create(folder / "run", recipe, dataset)
    return folder / "mlperf.log", Trainer(run, dataset, mllog=log).train()


def events(path):
    lines = path.read_text().splitlines()
    assert all(line.startswith(":::MLLOG ") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def complaints(path):
    """Of the checker: keys of rules that are broken, and what is missing."""
    checker = mlp_compliance.make_checker("training", RULES, quiet=False, werror=True)
    checker.check_file(str(path), f"training_{RULES}/common.yaml")
    return set(checker.overwritable), checker.not_overwritable


def test_a_run_that_reaches_its_target_keeps_mlperfs_rules(dataset, tmp_path):
    path, result = logged(dataset, tmp_path, 0.5)
    assert complaints(path) == (set(), [])
    assert result.reached_target and result.step == 5  # the first evaluation
    names = [event["key"] for event in events(path)]
    assert names[-5:] == ["eval_start", "eval_accuracy", "eval_stop", "epoch_stop", "run_stop"]
    assert names.index("init_start") < names.index("init_stop") < names.index("run_start")
    assert events(path)[-1]["metadata"]["status"] == "success"


def test_the_closed_division_asks_for_mlperfs_rows_and_auc_besides(dataset, tmp_path):
    """All of the rules on optimizer, schedule and batches are kept by the same log."""
    path, result = logged(dataset, tmp_path, 0.999, "closed")
    broken, missing = complaints(path)
    assert broken == {"eval_samples"}
    assert [text for text in missing if "eval_accuracy" not in text] == []
    assert not result.reached_target
    assert events(path)[-1]["metadata"]["status"] == "aborted"


def test_parts_begin_and_end_in_turn(dataset, tmp_path):
    """Evaluated after every five steps and at the end; an epoch's last batch is smaller."""
    path, result = logged(dataset, tmp_path, 0.999)
    found = events(path)
    rows = len(dataset.split("train"))
    batch = next(e["value"] for e in found if e["key"] == "global_batch_size")
    per_epoch = -(-rows // batch)
    seen = [e["metadata"]["epoch_num"] for e in found if e["key"] == "eval_accuracy"]
    at = [*range(5, result.step, 5), result.step]
    expected = [step // per_epoch + step % per_epoch * batch / rows for step in at]
    assert seen == pytest.approx(expected)
    inside = []
    for event in found:
        part, _, edge = event["key"].rpartition("_")
        if edge == "start" and part != "init":
            inside.append(part)
        elif edge == "stop" and part != "init":
            assert inside.pop() == part
    assert inside == []
    assert sum(e["key"] == "epoch_start" for e in found) == -(-result.step // per_epoch)


def test_there_is_one_log_a_run(tmp_path):
    (tmp_path / "log").write_text("")
    with pytest.raises(ConfigError, match=r"log: exists already; a log is of one run"):
        Mllog(tmp_path / "log")
    with pytest.raises(ConfigError, match="MLPerf times a run from its start; leave out one"):
        train("tiny", tmp_path, tmp_path / "run", resume=True, mllog=tmp_path / "log")


def test_without_the_package_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdlrm.train.mllog.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fastdlrm\[mlperf\]'"):
        Mllog(tmp_path / "log")
    Mllog(None).init_start(MlperfConfig(), "")


def test_a_log_needs_a_submitter_a_target_and_rows_to_reach_it_on():
    named = ("mlperf={organization='us'}", "train.target_metric_value=0.8")
    with pytest.raises(ConfigError, match=r"mlperf\.organization is empty"):
        require_loggable(tiny_recipe(), has_validation=True)
    with pytest.raises(
        ConfigError, match=r"target_metric_value is None and train\.best_metric 'auc'"
    ):
        require_loggable(tiny_recipe(named[0]), has_validation=True)
    with pytest.raises(ConfigError, match="the dataset has no validation split"):
        require_loggable(tiny_recipe(*named), has_validation=False)
    require_loggable(tiny_recipe(*named), has_validation=True)


def test_the_preset_is_mlperfs():
    """Its optimizer, schedule and target keep the closed rules; see the test of these above."""
    recipe = load_config("mlperf-dcnv2", Recipe, ())
    assert (recipe.mlperf.benchmark, recipe.train.target_metric_value) == ("dlrm_dcnv2", 0.80275)
    assert recipe.train.dense_optimizer.name == recipe.train.sparse_optimizer.name == "adagrad"
    assert (recipe.train.dense_optimizer.eps, recipe.train.schedule.name) == (1e-8, "constant")
