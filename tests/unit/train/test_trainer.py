"""The loop: best tracking, early stop, what it refuses. Resume is tested end to end."""

import json

import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.errors import CheckpointError, ConfigError, DataError
from fastdlrm.train.evaluate import evaluate
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_dataset, tiny_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("trainer"), 3000)


def _train(folder, dataset, *settings, **callbacks):
    recipe = tiny_recipe(*settings)
    return Trainer(Run.create(folder, recipe, dataset), dataset, **callbacks).train()


def _validations(folder):
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {r["step"]: r["values"] for r in records if r["kind"] == "validation"}


def test_best_checkpoint_is_the_best_and_is_kept(dataset, tmp_path):
    """The reference forgets the best metric, so that its "best" model is its last one."""
    settings = ("train.num_epochs=6", "train.evaluate_every_steps=9", "train.keep_checkpoints=1")
    rate = "train.dense_optimizer.learning_rate=0.05"
    result = _train(tmp_path / "run", dataset, *settings, rate)
    seen = _validations(tmp_path / "run")
    best = max(seen, key=lambda step: seen[step]["auc"])
    assert result.best_step == best
    assert best != max(seen), "pick settings that overfit: the test needs a best before the end"
    run = Run.open(tmp_path / "run")
    assert store.steps(run.checkpoints) == [best, result.step]
    rows = dataset.split("validation")
    again = evaluate(run.load_model("best"), rows, 512, torch.device("cpu"))
    assert again.auc == pytest.approx(seen[best]["auc"], abs=1e-6)


def test_lower_is_better_for_log_loss(dataset, tmp_path):
    settings = ("train.evaluate_every_steps=9", "train.best_metric='log_loss'")
    result = _train(tmp_path / "run", dataset, *settings)
    seen = _validations(tmp_path / "run")
    assert result.best_step == min(seen, key=lambda step: seen[step]["log_loss"])


def test_early_stop(dataset, tmp_path):
    """A learning rate too small to move any weight never beats its first evaluation."""
    still = tuple(f"train.{kind}_optimizer.learning_rate=1e-30" for kind in ("dense", "sparse"))
    settings = ("train.evaluate_every_steps=5", "train.early_stop_patience=3", *still)
    result = _train(tmp_path / "run", dataset, *settings)
    assert (result.stopped_early, result.is_finished) == (True, True)
    assert (result.best_step, result.step) == (5, 20)


def test_training_without_evaluation_still_saves(dataset, tmp_path):
    """The reference silently saves nothing unless it also tests."""
    folder = tmp_path / "data"
    bare = tiny_dataset(folder, 600, "data.split.validation={by='none'}")
    result = _train(tmp_path / "run", bare)
    assert result.best_step is None
    run = Run.open(tmp_path / "run")
    assert store.steps(run.checkpoints) == [result.step]
    run.load_model("best")


def test_same_seed_same_run_other_seed_other_run(dataset, tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _train(tmp_path / name, dataset, f"seed={seed}", "train.max_steps=10")
        run = Run.open(tmp_path / name)
        weights.append(run.load_model("last").tables.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_diverged_training_is_said(dataset, tmp_path):
    settings = ("train.dense_optimizer={name='sgd', learning_rate=1e30}", "train.log_every_steps=1")
    with pytest.raises(DataError, match=r"training loss is NaN at step \d+; lower the learning"):
        _train(tmp_path / "run", dataset, *settings)


def test_out_must_be_empty_without_resume(dataset, tmp_path):
    _train(tmp_path / "run", dataset, "train.max_steps=1")
    with pytest.raises(ConfigError, match="not empty; pass --resume"):
        Run.create(tmp_path / "run", tiny_recipe(), dataset)


def test_resume_refuses_another_config_and_another_dataset(dataset, tmp_path):
    _train(tmp_path / "run", dataset, "train.max_steps=1")
    Run.resume(tmp_path / "run", tiny_recipe("train.max_steps=2"), dataset)
    with pytest.raises(ConfigError, match=r"model\.bottom_mlp differs from the run's"):
        changed = tiny_recipe("model.embedding_dim=2", "model.bottom_mlp=[8, 2]")
        Run.resume(tmp_path / "run", changed, dataset)
    with pytest.raises(ConfigError, match="seed differs from the run's"):
        Run.resume(tmp_path / "run", tiny_recipe("seed=9"), dataset)
    other = tiny_dataset(tmp_path / "other", 500)
    with pytest.raises(DataError, match="is not the dataset of this run"):
        Run.resume(tmp_path / "run", tiny_recipe(), other)
    with pytest.raises(DataError, match="encoded differently from the dataset that"):
        Run.open(tmp_path / "run").require_same_encoding(other)


def test_checkpoint_names(dataset, tmp_path):
    _train(tmp_path / "run", dataset, "train.max_steps=4")
    run = Run.open(tmp_path / "run")
    assert run.checkpoint_folder("4") == run.checkpoint_folder("last")
    with pytest.raises(CheckpointError, match=r"no checkpoint '3'; best, last or one of \[4\]"):
        run.checkpoint_folder("3")
    with pytest.raises(CheckpointError, match=r"no manifest\.json; a finished run folder has one"):
        Run.open(tmp_path)
    fresh = Run.create(tmp_path / "fresh", tiny_recipe(), dataset)
    with pytest.raises(CheckpointError, match="no checkpoint yet; train it first"):
        fresh.checkpoint_folder("last")


def test_batch_norm_takes_a_last_batch_of_one_row(dataset, tmp_path):
    num_rows = dataset.manifest.splits["train"].num_rows
    settings = ("model.norm='batch'", f"train.global_batch_size={num_rows - 1}")
    assert _train(tmp_path / "run", dataset, *settings).step == 2


def test_an_evaluation_may_end_the_training(dataset, tmp_path):
    told = []

    def end_at_the_second(step, values):
        told.append((step, values.auc))
        return len(told) == 2

    settings = ("train.evaluate_every_steps=9",)
    result = _train(tmp_path / "run", dataset, *settings, on_evaluation=end_at_the_second)
    assert (result.is_finished, result.step) == (False, 18)
    seen = _validations(tmp_path / "run")
    assert told == [(step, seen[step]["auc"]) for step in (9, 18)]
    run = Run.resume(tmp_path / "run", tiny_recipe(*settings), dataset)
    assert Trainer(run, dataset).train().is_finished
