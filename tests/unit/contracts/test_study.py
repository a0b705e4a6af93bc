"""A study's result on disk, and what is said where it cannot be read."""

import json

import msgspec
import pytest

from fastdlrm.contracts.study import (
    Choice,
    Range,
    Space,
    StudyResult,
    StudySettings,
    TrialRecord,
    Variant,
    read_study,
    write_study,
)
from fastdlrm.errors import DataError


def made() -> StudyResult:
    parameters = {
        "model.dropout": Range(low=0.0, high=0.5),
        "model.top_mlp": Choice(values=([8], [8, 8])),
        "interaction": Variant(options={"a": {"model.interaction": "dot"}, "b": {}}),
    }
    settings = StudySettings(
        config={"seed": 1},
        space=Space(parameters=parameters),
        metric="auc",
        is_higher_better=True,
        seed=0,
        evaluations_per_epoch=None,
        is_pruning=True,
        dataset_sha256="aa",
    )
    trial = TrialRecord(
        number=0,
        state="complete",
        params={"model.dropout": 0.25, "model.top_mlp": [8], "interaction": "a"},
        value=0.7,
        evaluations={1: 0.6, 2: 0.7},
        run="trials/0000",
        started="2026-01-02T03:04:05+00:00",
        seconds=1.5,
        num_starts=1,
        reason="",
    )
    return StudyResult(
        created_by="0",
        commit="aa",
        started="2026-01-02T03:04:05+00:00",
        machine="Planted CPU",
        num_cores=8,
        sampler="planted",
        data="DATA",
        settings=settings,
        trials=(trial,),
        best=0,
        importances={},
    )


def test_goes_to_disk_and_back(tmp_path):
    write_study(tmp_path, made())
    assert read_study(tmp_path) == made()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, r"kind and version are \('study', 9\), wanted \('study', 1\); run `fast"),
        ({"trials": 1}, r"study\.json: damaged: Expected `array`"),
    ],
)
def test_what_is_not_a_study_is_told(tmp_path, change, message):
    tree = json.loads(msgspec.json.encode(made())) | change
    (tmp_path / "study.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        read_study(tmp_path)
