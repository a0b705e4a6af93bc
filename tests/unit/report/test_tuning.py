"""The section of a study: numbers of our choosing, on a machine that does not exist."""

import msgspec
import pytest

from fastdlrm.contracts.study import Choice, Range, Space, TrialRecord, write_study
from fastdlrm.report.page import Fold, Grid
from fastdlrm.report.sources import Sources, Study, read_sources
from fastdlrm.report.study import study_page
from fastdlrm.report.tuning import tuning_section
from tests.unit.contracts.test_study import made

PARAMETERS = {
    "rate": Range(low=0.001, high=0.1, is_log=True),
    "layers": Choice(values=([8], [8, 8])),
}
TRIALS = [  # state, rate, layers, values by evaluation
    ("complete", 0.01, [8], [0.6, 0.7]),
    ("failed", 0.1, [8], []),
    ("complete", 0.02, [8, 8], [0.5, 0.65]),
    ("pruned", 0.001, [8], [0.55]),
    ("complete", 0.05, [8], [0.75, 0.72]),
]


def planted(**changes):
    trials = [
        TrialRecord(
            number=number,
            state=state,
            params={"rate": rate, "layers": layers},
            value=max(values, default=None),
            evaluations=dict(enumerate(values, 1)),
            run=f"trials/{number:04d}",
            started="",
            seconds=2.0,
            num_starts=1,
            reason="it diverged" if state == "failed" else "",
        )
        for number, (state, rate, layers, values) in enumerate(TRIALS)
    ]
    settings = msgspec.structs.replace(made().settings, space=Space(parameters=PARAMETERS))
    told = {"settings": settings, "trials": tuple(trials), "best": 4}
    told["importances"] = {"rate": 0.75, "layers": 0.25}
    return msgspec.structs.replace(made(), **(told | changes))


def charts(study):
    blocks = tuning_section(study).blocks
    found = [chart for block in blocks if isinstance(block, Grid) for chart in block.blocks]
    return {chart.title: chart for chart in found}


@pytest.fixture
def study(tmp_path):
    write_study(tmp_path, planted())
    (found,) = read_sources([tmp_path]).studies
    return found


def test_history(study):
    best, complete, others = charts(study)["Value by trial"].series
    assert list(zip(best.places, best.values, strict=True)) == [
        (0, 0.7),
        (2, 0.7),
        (3, 0.7),
        (4, 0.75),
    ]
    assert (list(complete.places), list(complete.values)) == ([0, 2, 4], [0.7, 0.65, 0.75])
    assert (list(others.places), list(others.values)) == ([3], [0.55])


def test_curves(study):
    series = charts(study)["Trials by evaluation"].series
    assert [one.name for one in series][-1] == "trial 4, the best"
    assert list(series[-1].values) == [0.75, 0.72]
    assert [one.is_faint for one in series] == [True, True, True, False]


def test_slices_and_importance(study):
    found = charts(study)
    assert list(found["Importance"].series[0].values) == [0.75, 0.25]
    complete, others = found["rate"].series
    assert list(complete.places) == [0.01, 0.02, 0.05]
    assert list(others.places) == [0.001]
    (layers,) = found["layers"].series
    # of [8]: 0.55, 0.7, 0.75; of [8, 8]: 0.65
    assert list(found["layers"].rows) == ["[8] (3 trials)", "[8, 8] (1 trial)"]
    assert (layers.values, layers.low, layers.high) == ([0.7, 0.65], [0.55, 0.65], [0.75, 0.65])


def test_less_may_be_better(tmp_path):
    settings = msgspec.structs.replace(planted().settings, metric="ne", is_higher_better=False)
    found = charts(Study(tmp_path, planted(settings=settings, best=2)))
    assert list(found["Value by trial"].series[0].values) == [0.7, 0.65, 0.65, 0.65]


def test_the_table_of_trials(study):
    (fold,) = [block for block in tuning_section(study).blocks if isinstance(block, Fold)]
    assert [row[0] for row in fold.table.rows] == ["4", "0", "2", "3", "1"]
    assert fold.table.rows[-1][-1] == "it diverged"
    assert fold.table.rows[0][4] == "[8]"


def test_a_study_that_has_just_begun(tmp_path):
    study = Study(tmp_path, planted(trials=(), best=None, importances={}))
    assert charts(study) == {}


def test_the_page(study):
    page = study_page(Sources(results=[], runs=[], evaluations=[], studies=[study, study]), "T")
    assert page.subtitle == "2 studies"
    assert f"Study {study.path}" in page.html()
