"""Curves of runs and of evaluations, and what is said where a source cannot be read."""

import json

import msgspec
import pytest

from fastdlrm.contracts.bench_result import write_result
from fastdlrm.errors import DataError
from fastdlrm.metrics.eval_result import EvalResult, write_eval_result
from fastdlrm.report.page import Fold, Grid
from fastdlrm.report.run_quality import quality_section
from fastdlrm.report.run_training import training_section
from fastdlrm.report.sources import Sources, read_sources
from fastdlrm.report.study import study_page
from tests.builders import tiny_dataset
from tests.unit.report.planted import measured, metrics, result, write_run


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), 1000).manifest


def evaluated(path, **changes):
    """A file of `fastdlrm eval --out`."""
    made = EvalResult(
        created_by="0",
        commit="aa",
        started="2026-01-02T03:04:05+00:00",
        run="RUN",
        step=40,
        data="DATA",
        split="test",
        config={},
        machine="",
        values=metrics(0.71),
    )
    write_eval_result(path, msgspec.structs.replace(made, **changes))
    return path


def charts(section):
    (grid,) = [block for block in section.blocks if isinstance(block, Grid)]
    return grid.blocks


def test_training_curves(tmp_path, encoded):
    run = write_run(tmp_path / "run", encoded=encoded)
    sources = read_sources([run])
    section = training_section(sources.runs)
    loss, auc = charts(section)
    train, validation = loss.series
    assert list(train.places) == [1000, 2000, 3000, 4000]  # steps of 100 samples
    assert list(train.values) == [1 / 10, 1 / 20, 1 / 30, 1 / 40]
    assert (list(validation.places), list(validation.values)) == ([2000, 4000], [0.6, 0.7])
    assert [list(one.values) for one in auc.series] == [[0.6, 0.7]]
    assert "Planted GPU, commit fedcba987654" in loss.note
    # Median of 1010, 1020, 1030, 1040 samples/s; the second evaluation has the higher AUC.
    row = [getattr(cell, "value", cell) for cell in section.blocks[1].rows[0]]
    assert row[:7] == [str(run), "Planted GPU", 40, 4000, 1025.0, 40, 0.7]
    (fold,) = [block for block in section.blocks if isinstance(block, Fold)]
    assert len(fold.table.rows) == 2


def test_two_runs_are_drawn_together(tmp_path, encoded):
    runs = [write_run(tmp_path / name, encoded=encoded) for name in ("a", "b")]
    loss, auc = charts(training_section(read_sources(runs).runs))
    assert [one.name for one in auc.series] == list(map(str, runs))
    assert [one.is_faint for one in loss.series] == [True, False, True, False]


def test_another_loss_than_the_metric_is_told(tmp_path, encoded):
    run = write_run(tmp_path / "run", loss="mse", encoded=encoded)
    loss, _ = charts(training_section(read_sources([run]).runs))
    assert loss.y == "train: mse; validation: log loss, nats"


def test_without_evaluations_there_are_losses_alone(tmp_path, encoded):
    run = write_run(tmp_path / "run", encoded=encoded)
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text(lines[0] + lines[1] + lines[3][:20])  # still being written
    sources = read_sources([run])
    assert len(charts(training_section(sources.runs))) == 1
    assert quality_section(sources).blocks == []


@pytest.mark.parametrize(("metric", "step"), [("auc", 40), ("log_loss", 20)])
def test_the_best_evaluation_is_that_of_the_config(tmp_path, encoded, metric, step):
    run = write_run(tmp_path / "run", best_metric=metric, encoded=encoded)
    (found,) = read_sources([run]).runs
    assert found.best.step == step


def test_predictions_of_a_run_and_of_an_evaluation(tmp_path, encoded):
    run = write_run(tmp_path / "run", encoded=encoded)
    section = quality_section(read_sources([run, evaluated(tmp_path / "eval.json")]))
    calibration, roc = charts(section)
    ours, test, diagonal = calibration.series
    assert (list(ours.places), list(ours.values)) == ([0.1, 0.5], [0.05, 0.55])
    assert all(
        low < value < high
        for low, value, high in zip(ours.low, ours.values, ours.high, strict=True)
    )
    assert test.name == "RUN, test, step 40"
    assert (list(diagonal.places), list(diagonal.values)) == ([0, 0.55], [0, 0.55])
    assert [one.name for one in roc.series] == [
        f"{run}, validation, step 40: AUC 0.7000",
        "RUN, test, step 40: AUC 0.7100",
        "chance",
    ]
    assert list(roc.series[0].values) == [0, 0.75, 1]
    assert "machine not recorded, commit aa" in roc.note


def test_without_points_there_is_no_roc(tmp_path):
    path = evaluated(tmp_path / "eval.json", values=metrics(roc=None))
    assert len(charts(quality_section(read_sources([path])))) == 1


def test_sections_come_in_order_and_only_those_that_are_there(tmp_path, encoded):
    paths = [write_run(tmp_path / "run", encoded=encoded)]
    for name in ("other", "batch"):
        paths.append(tmp_path / f"{name}.json")
        write_result(paths[-1], result([measured({"batch_size": "1"}, 1.0)], name))
    page = study_page(read_sources(paths), "Title")
    assert [section.title for section in page.sections] == [
        "Sources",
        "Latency and throughput against batch size",
        "Benchmark other",
        "Training",
        "Predictions",
    ]
    assert page.subtitle == "2 benchmark results, 1 training run"
    assert study_page(Sources(results=[], runs=[], evaluations=[]), "").sections == []


def test_what_cannot_be_read_is_named(tmp_path, encoded):
    run = write_run(tmp_path / "run", encoded=encoded)
    with pytest.raises(DataError, match=r"run: the same as .*run; name it once"):
        read_sources([run, tmp_path / "." / "run"])
    with pytest.raises(DataError, match=r"none.json: no such file; name a result"):
        read_sources([tmp_path / "none.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no manifest.json; a finished run folder has one"):
        read_sources([tmp_path / "empty"])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad.json: damaged: .*run the benchmark again"):
        read_sources([tmp_path / "bad.json"])
    lacking = {"step": 1, "kind": "validation", "values": {"auc": 0.5}, "timing": {}}
    (run / "records.jsonl").write_text(json.dumps(lacking) + "\n")
    with pytest.raises(DataError, match=r"a validation record lacks a metric: .*again with"):
        read_sources([run])
