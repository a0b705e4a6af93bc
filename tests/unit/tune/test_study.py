"""A study from the command line to its end: side by side, killed, gone on with."""

import contextlib
import json
import multiprocessing
import shlex
import shutil
import tomllib

import pytest

from fastdlrm.config import load_config
from fastdlrm.contracts.study import read_study
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.metrics.eval_result import read_eval_result
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.tune.search import run_folder
from fastdlrm.tune.space import read_space
from fastdlrm.tune.study import MOST_DEATHS, opened, settings_of
from fastdlrm.tune.trial import Order, train_trial
from fastdlrm.tune.workers import Died
from tests.builders import guide_blocks, invoke, tiny_dataset, tiny_recipe

SPACE = ("train.dense_optimizer.learning_rate=log:1e-4..1e-1",), ("model.embedding_dim=2,4",)
FLAGS = ("--range", *SPACE[0], "--choice", *SPACE[1], "--evaluations-per-epoch", "3")
GENERATE, PREPARE, TUNE, REPORT, TRAIN = (
    shlex.split(line)[1:] for line in guide_blocks("docs/guides/tune.md")[0].splitlines()
)


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The folder in which the guide's commands run."""
    folder = tmp_path_factory.mktemp("guide")
    with contextlib.chdir(folder):
        invoke(*GENERATE)
        invoke(*PREPARE)
    return folder


@pytest.fixture(scope="module")
def dataset(guide):
    """Its test split is nothing but zeros: who reads it fails."""
    shutil.copytree(guide / "data", guide / "copy")
    found = Dataset.open(guide / "data")
    for part in (found.folder / "test").glob("*.arrow"):
        part.write_bytes(bytes(part.stat().st_size))
    return found


def settings(dataset, base=None, **changes):
    base = base or tiny_recipe()
    told = {"seed": 0, "evaluations_per_epoch": 3, "is_pruning": True}
    return settings_of(base, dataset, read_space(None, *SPACE, base), **(told | changes))


@pytest.fixture(scope="module")
def whole(guide, dataset):
    """Three trials, one after the other."""
    with contextlib.chdir(guide):
        told = invoke(*TUNE, "--trials", 3, "--workers", 1, "--json")
    return guide / "study", told


def test_the_guide_s_commands(guide, whole):
    with contextlib.chdir(guide):
        invoke(*REPORT)
        invoke(*TRAIN, "--set", "train.max_steps=2")
    assert "Importance" not in (guide / "report" / "report.md").read_text()
    assert Run.open(guide / "run").recipe.seed == 2


def test_what_a_study_leaves(dataset, whole):
    folder, told = whole
    study = read_study(folder)
    assert json.loads(told) == json.loads((folder / "study.json").read_text())
    assert [trial.state for trial in study.trials] == ["complete"] * 3
    assert [list(trial.evaluations) for trial in study.trials] == [[1, 2, 3]] * 3
    values = [trial.value for trial in study.trials]
    assert study.best == values.index(max(values))
    assert study.data == "data"
    for trial in study.trials:
        recipe = Run.open(folder / trial.run).recipe
        params = trial.params
        assert recipe.train.dense_optimizer.learning_rate == params[SPACE[0][0].split("=")[0]]
        assert recipe.model.embedding_dim == params["model.embedding_dim"]
        assert recipe.model.bottom_mlp == (8, params["model.embedding_dim"])
        has_checkpoints = (folder / trial.run / "checkpoints").is_dir()
        assert has_checkpoints == (trial.number == study.best)
    best = load_config(str(folder / "best.toml"), Recipe)
    assert best == Run.open(folder / study.trials[study.best].run).recipe
    assert tomllib.loads((folder / "best.toml").read_text())["seed"] == 1


def test_a_study_whose_processes_were_killed_ends_as_if_they_had_not(dataset, whole, tmp_path):
    """The study's own process dies in the middle of a trial; then those of trials side by side."""
    folder, asked = tmp_path / "study", settings(dataset)

    class Killed(Exception):
        pass

    def die(evaluation, value):
        if search.evaluated(0, evaluation, value) or evaluation == 2:
            raise Killed

    with opened(folder, asked, dataset, is_resumed=True) as study:
        search = study._search
        search.start(search.ask())
        with pytest.raises(Killed):
            train_trial(study._order(0), die)
        with pytest.raises(ConfigError, match="another process goes on with this study; wait, or"):
            opened(folder, asked, dataset, is_resumed=True).__enter__()
    assert [trial.state for trial in search.records()] == ["running"]

    lines = []

    def tell(line):
        if not lines:
            for process in multiprocessing.active_children():
                process.kill()
        lines.append(line)

    with opened(folder, asked, dataset, is_resumed=True, on_message=tell) as study:
        study.run(num_trials=3, workers=2)
    assert len(lines) == 3
    assert all("complete, auc 0." in line for line in lines), lines
    found, wanted = read_study(folder), read_study(whole[0])
    assert [trial.params for trial in found.trials] == [trial.params for trial in wanted.trials]
    for one, other in zip(found.trials, wanted.trials, strict=True):
        # another number of threads adds in another order
        assert one.evaluations == pytest.approx(other.evaluations, abs=1e-4)
    assert found.trials[0].num_starts >= 2
    assert found.best == wanted.best


def test_a_finished_study_is_evaluated_on_test_and_only_then(dataset, whole, tmp_path):
    """--trials is met already: nothing is trained."""
    folder = tmp_path / "study"
    shutil.copytree(whole[0], folder)
    command = ("tune", "--config", "tiny", "--out", folder, *FLAGS, "--trials", 3, "--resume")
    told = invoke(*command, "--data", dataset.folder)
    assert "3 complete" in told
    assert f"best: trial {read_study(folder).best}, config {folder / 'best.toml'}" in told
    with pytest.raises(DataError, match="test"):
        invoke(*command, "--data", dataset.folder, "--test")
    invoke(*command, "--data", dataset.folder.with_name("copy"), "--test")
    found = read_eval_result(folder / "test.json")
    assert (found.split, found.config) == (
        "test",
        Run.open(folder / run_folder(read_study(folder).best)).manifest.config,
    )


def test_a_process_that_dies_again_and_again_is_given_up(dataset, tmp_path):
    lines = []
    with opened(
        tmp_path, settings(dataset), dataset, is_resumed=True, on_message=lines.append
    ) as study:
        for _ in range(MOST_DEATHS):
            number = study._next(1)
            assert study._search.running() == [number]
            study._ended(number, Died("SIGKILL"), is_stopping=False)
        with pytest.raises(ConfigError, match=r"none of 1 trials was completed; the first failed"):
            study.run(num_trials=1, workers=1)
    assert lines[0].endswith(": its process was ended twice, the second time by SIGKILL")


def test_values_that_do_not_go_together_fail_and_others_are_tried(dataset, tmp_path):
    base = tiny_recipe()
    choices = ["train.global_batch_size=64,96", "train.gradient_accumulation_steps=1,64"]
    asked = settings_of(
        base,
        dataset,
        read_space(None, (), choices, base),
        seed=1,
        evaluations_per_epoch=None,
        is_pruning=True,
    )
    with opened(tmp_path, asked, dataset, is_resumed=True) as study:
        while study._next(8) is not None:
            pass
        records = study._search.records()
    failed = [trial for trial in records if trial.state == "failed"]
    assert 0 < len(failed) < 8
    assert all("not a multiple of gradient_accumulation_steps" in one.reason for one in failed)
    assert all(tuple(one.params.values()) == (96, 64) for one in failed)


def test_another_study_is_refused(dataset, whole):
    folder, _ = whole
    with pytest.raises(ConfigError, match=r"--out .*: not an empty folder; pass --resume to go on"):
        opened(folder, settings(dataset), dataset, is_resumed=False).__enter__()
    changed = {"seed": 1, "evaluations_per_epoch": 2, "is_pruning": False}
    for name, value in changed.items():
        asked = settings(dataset, **{name: value})
        with pytest.raises(ConfigError, match=rf"--resume .*: {name} is not the study's; resume"):
            opened(folder, asked, dataset, is_resumed=True).__enter__()
    asked = settings(dataset, tiny_recipe("model.top_mlp=[8]"))
    with pytest.raises(ConfigError, match="config is not the study's"):
        opened(folder, asked, dataset, is_resumed=True).__enter__()


def test_what_cannot_be_compared_is_refused(dataset, tmp_path):
    base = tiny_recipe("train.evaluate_every_steps=5")
    space = read_space(None, (), ["train.global_batch_size=32,64"], base)
    told = {"seed": 0, "evaluations_per_epoch": None, "is_pruning": True}
    with pytest.raises(ConfigError, match="trials would be compared after other numbers of rows"):
        settings_of(base, dataset, space, **told)
    settings_of(base, dataset, space, **(told | {"is_pruning": False}))
    bare = tiny_dataset(tmp_path, 400, "data.split.validation={by='none'}")
    with pytest.raises(DataError, match="no split 'validation', by which trials are compared"):
        settings_of(base, bare, space, **told)


def test_orders_hold_all_that_a_process_needs(dataset, tmp_path):
    with opened(tmp_path, settings(dataset), dataset, is_resumed=True) as study:
        order = study._order(study._next(1))
    assert isinstance(order, Order)
    rows = dataset.manifest.splits["train"].num_rows
    every = round(-(-rows // 64) / 3)
    assert order.config["train"]["evaluate_every_steps"] == every
