"""What is drawn, pruned and kept, without training: values are a formula's."""

import math

import pytest

from fastdlrm.contracts.study import Choice, Range, Space, StudySettings, Variant
from fastdlrm.errors import ConfigError
from fastdlrm.tune.search import LEAST_FOR_IMPORTANCE, Search, require_optuna

SPACE = Space(
    parameters={
        "rate": Range(low=1e-4, high=1e-1, is_log=True),
        "width": Range(low=16, high=64, step=16, is_integer=True),
        "layers": Choice(values=([8], [8, 8])),
        "kind": Variant(options={"a": {"k": 1}, "b": {"k": 2}}),
    }
)


def settings(**changes):
    told = {
        "config": {},
        "space": SPACE,
        "metric": "auc",
        "is_higher_better": True,
        "seed": 3,
        "evaluations_per_epoch": None,
        "is_pruning": True,
        "dataset_sha256": "",
    }
    return StudySettings(**(told | changes))


@pytest.fixture
def search(tmp_path):
    found = Search(tmp_path, settings())
    yield found
    found.close()


def quality(params):
    """Best at a rate of 1e-2; nothing else counts."""
    return -abs(math.log10(params["rate"]) + 2)


def complete(search, *values):
    """One trial a value, each of one evaluation."""
    for value in values:
        number = search.ask()
        search.start(number)
        search.evaluated(number, 1, value)
        search.end(number, "complete", seconds=1.0)


def test_a_trial_from_its_parameters_to_its_end(search):
    number = search.ask()
    params = search.start(number)
    assert 1e-4 <= params["rate"] <= 1e-1
    assert params["width"] in (16, 32, 48, 64)
    assert params["layers"] in ([8], [8, 8])
    assert params["kind"] in ("a", "b")
    assert search.running() == [number] == [0]
    assert search.evaluated(number, 1, 0.7) is False
    search.evaluated(number, 2, 0.8)
    search.evaluated(number, 2, 0.9)  # told again: the first counts
    search.evaluated(number, 3, 0.6)
    search.end(number, "complete", seconds=2.5)
    (record,) = search.records()
    assert (record.state, record.value, record.seconds) == ("complete", 0.8, 2.5)
    assert record.evaluations == {1: 0.7, 2: 0.8, 3: 0.6}
    assert (record.params, record.run, record.num_starts) == (params, "trials/0000", 1)
    assert search.running() == []


def test_what_is_drawn_does_not_hang_on_restarts(tmp_path, monkeypatch):
    """Else a sampler with a seed would draw its first trials again after each restart."""
    monkeypatch.setattr("fastdlrm.tune.search.NUM_RANDOM_TRIALS", 2)
    drawn = []
    for name, restarts in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        search = Search(tmp_path / name, settings())
        for _ in range(5):  # three of them after the random ones
            number = search.ask()
            params = search.start(number)
            search.evaluated(number, 1, quality(params))
            search.end(number, "complete")
            if restarts:
                search.close()
                search = Search(tmp_path / name, settings())
        drawn.append([record.params for record in search.records()])
        search.close()
    assert drawn[0] == drawn[1]
    assert len({params["rate"] for params in drawn[0]}) == 5


def test_a_restarted_trial_keeps_its_parameters(tmp_path):
    first = Search(tmp_path, settings())
    params = first.start(first.ask())
    first.close()
    again = Search(tmp_path, settings())
    assert again.running() == [0]
    assert again.start(0) == params
    assert again.records()[0].num_starts == 2
    again.close()


def test_below_the_median_a_trial_is_given_up(search):
    complete(search, 0.5, 0.6, 0.7, 0.8, 0.9)  # median 0.7
    for value, is_given_up in ((0.71, False), (0.69, True)):
        number = search.ask()
        search.start(number)
        assert search.evaluated(number, 1, value) is is_given_up
    search.end(number, "pruned")
    assert search.records()[-1].state == "pruned"
    assert search.records()[-1].value == 0.69


def test_no_trial_is_given_up_early_or_against_the_will(tmp_path, search):
    complete(search, 0.5, 0.6, 0.7, 0.8)
    search.start(search.ask())
    assert search.evaluated(4, 1, 0.1) is False
    (tmp_path / "other").mkdir()
    other = Search(tmp_path / "other", settings(is_pruning=False))
    complete(other, 0.5, 0.6, 0.7, 0.8, 0.9)
    other.start(other.ask())
    assert other.evaluated(5, 1, 0.1) is False
    other.close()


def test_less_may_be_better(tmp_path):
    search = Search(tmp_path, settings(is_higher_better=False))
    complete(search, 0.5, 0.6, 0.7, 0.8, 0.9)
    for value, is_given_up in ((0.69, False), (0.71, True)):
        number = search.ask()
        search.start(number)
        assert search.evaluated(number, 1, value) is is_given_up
    search.end(5, "failed", reason="why")
    assert (search.records()[5].state, search.records()[5].reason) == ("failed", "why")
    search.close()


def test_importance_is_the_rate_s(search):
    for num_trials in range(LEAST_FOR_IMPORTANCE):
        assert search.importances() == {}, f"{num_trials} trials say too little"
        number = search.ask()
        search.evaluated(number, 1, quality(search.start(number)))
        search.end(number, "complete")
    found = search.importances()
    assert next(iter(found)) == "rate"
    assert found["rate"] > 0.5
    assert sum(found.values()) == pytest.approx(1)


def test_equal_values_tell_no_importance(search):
    complete(search, *[0.5] * LEAST_FOR_IMPORTANCE)
    assert search.importances() == {}


@pytest.mark.parametrize(("absent", "name"), [("optuna", "optuna"), ("sklearn", "scikit-learn")])
def test_what_is_not_installed_is_told(monkeypatch, absent, name):
    monkeypatch.setattr(
        "fastdlrm.tune.search.find_spec", lambda module: None if module == absent else object()
    )
    with pytest.raises(ConfigError, match=rf"tune needs {name}; pip install 'fastdlrm\[tune\]'"):
        require_optuna()
