"""A trial in this process: what it tells, how it ends, how it goes on."""

import json

import pytest

from fastdlrm.config import to_tree
from fastdlrm.train.matmul import FILE
from fastdlrm.tune.trial import Order, train_trial
from tests.builders import tiny_dataset, tiny_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("trial"), 2000)


def order(study, dataset, *settings, run="run"):
    """A trial that is evaluated at steps 8, 16, 24 and at its end, 25."""
    recipe = tiny_recipe("train.evaluate_every_steps=8", *settings)
    return Order(
        number=0, config=to_tree(recipe), data=dataset.folder, study=study, run=f"trials/{run}"
    )


class Listener:
    """What a trial told; gives it up at an evaluation, or dies there."""

    def __init__(self, give_up_at=0, die_at=0):
        self.told = {}
        self.give_up_at, self.die_at = give_up_at, die_at

    def __call__(self, evaluation, value):
        self.told[evaluation] = value
        if evaluation == self.die_at:
            raise Killed
        return evaluation == self.give_up_at


class Killed(Exception):
    pass


def recorded(folder):
    lines = (folder / "records.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [one["values"]["auc"] for one in found if one["kind"] == "validation"]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    study = tmp_path_factory.mktemp("whole")
    listener = Listener()
    assert train_trial(order(study, dataset), listener).state == "complete"
    return study, listener.told


def test_every_evaluation_is_told(whole):
    study, told = whole
    assert list(told) == [1, 2, 3, 4]
    assert list(told.values()) == recorded(study / "trials" / "run")


def test_a_trial_that_is_given_up_ends_there(dataset, tmp_path, whole):
    listener = Listener(give_up_at=2)
    assert train_trial(order(tmp_path, dataset), listener).state == "pruned"
    assert listener.told == {k: whole[1][k] for k in (1, 2)}
    assert recorded(tmp_path / "trials" / "run") == list(listener.told.values())


def test_a_trial_whose_process_died_goes_on_as_if_it_had_not(dataset, tmp_path, whole):
    with pytest.raises(Killed):
        train_trial(order(tmp_path, dataset), Listener(die_at=2))
    listener = Listener()
    assert train_trial(order(tmp_path, dataset), listener).state == "complete"
    assert listener.told == whole[1]  # those before its death are told again
    assert recorded(tmp_path / "trials" / "run") == list(whole[1].values())


def test_a_trial_that_died_as_it_was_given_up_trains_no_more(dataset, tmp_path):
    with pytest.raises(Killed):
        train_trial(order(tmp_path, dataset), Listener(die_at=2))
    assert train_trial(order(tmp_path, dataset), Listener(give_up_at=2)).state == "pruned"
    assert len(recorded(tmp_path / "trials" / "run")) == 2


def test_all_trials_multiply_as_the_study_began(dataset, tmp_path, whole):
    way = whole[0] / "trials" / "run" / FILE
    choice = json.loads(way.read_text()) | {"reason": "chosen by the study"}
    (tmp_path / FILE).write_text(json.dumps(choice))
    train_trial(order(tmp_path, dataset, "train.max_steps=1"), Listener())
    assert json.loads((tmp_path / "trials" / "run" / FILE).read_text()) == choice


def test_a_trial_that_diverges_fails(dataset, tmp_path):
    settings = ("train.dense_optimizer={name='sgd', learning_rate=1e30}", "train.log_every_steps=1")
    outcome = train_trial(order(tmp_path, dataset, *settings), Listener())
    assert (outcome.state, outcome.reason[:20]) == ("failed", "training loss is NaN")


def test_a_metric_that_validation_does_not_define(tmp_path):
    """Rows of one class have no AUC."""
    few = "data.split.validation={by='hash', amount=0.004}"
    dataset = tiny_dataset(tmp_path / "data", 600, few)
    split = dataset.manifest.splits["validation"]
    assert split.num_positives in (0, split.num_rows), "pick an amount that gives one class"
    listener = Listener()
    outcome = train_trial(order(tmp_path, dataset, "train.max_steps=1"), listener)
    assert (outcome.state, listener.told) == ("failed", {})
    assert outcome.reason == "auc is undefined on validation: it has rows of one class"
