"""An exported model scores raw files as the run does, in every bit, on real and generated logs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastdlrm.contracts.delta import DELTAS
from fastdlrm.export.model import ExportedModel
from tests.builders import fastdlrm, invoke
from tests.e2e.test_serving_parity import adult, bags, criteo


@pytest.fixture(scope="module", params=[criteo, adult, bags], ids=lambda make: make.__name__)
def trained(request, tmp_path_factory):
    """A log, its dataset, and a run of one epoch."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    (folder / "log").mkdir()
    log = request.param(folder / "log")
    inputs = [word for file in log.files for word in ("--input", file)]
    invoke("prepare", "--config", log.config, *inputs, "--out", folder / "data")
    run = ("--data", folder / "data", "--out", folder / "run")
    invoke("train", "--config", log.config, *run, "--set", "train.num_epochs=1")
    return folder, log


def scores(folder, out, *of):
    """What `predict` says of the last file."""
    invoke("predict", *of, "--out", folder / out)
    return pq.read_table(folder / out)


def test_scores_are_the_runs_in_every_bit(trained):
    folder, log = trained
    raw = ("--input", log.files[-1])
    out = folder / "model"
    command = ("export", "--run", folder / "run", "--data", folder / "data", "--out", out)
    manifest = json.loads(invoke(*command, "--requests", log.files[0], "--compare", "--json"))
    plain, ours, *others = manifest["quality"]
    assert ours["max_logit_difference"] == 0
    assert (plain["auc"], plain["ne"]) == (ours["auc"], ours["ne"])
    assert {"int8", "int4"} <= {quality["tables"] for quality in others}
    by_run = scores(folder, "run.parquet", "--run", folder / "run", *raw)
    by_model = scores(folder, "model.parquet", "--model", out, *raw)
    assert by_model.equals(by_run)
    assert np.isfinite(by_run.column("score")).all()
    test = json.loads(invoke("eval", "--run", folder / "run", "--data", folder / "data", "--json"))
    assert test["auc"] == ours["auc"]


def test_a_calibrated_model_is_better_calibrated(trained):
    folder, _ = trained
    out = folder / "calibrated"
    flags = ("--tables", "int8", "--calibrate", "isotonic", "--max-ne-rise", "0.05")
    command = ("export", "--run", folder / "run", "--data", folder / "data", "--out", out)
    invoke(*command, *flags, "--max-auc-drop", "0.05")
    model = ExportedModel.load(out)
    found = model.predict_raw(model.warmup_rows())
    assert 0 < found.min() < found.max() < 1
    assert len(model.manifest.calibration.knot_logits) > 1


def test_a_checkpoint_that_is_served_makes_no_delta(trained):
    folder, _ = trained
    out = folder / "first"
    invoke("export", "--run", folder / "run", "--checkpoint", "last", "--out", out)
    nothing = json.loads(invoke("export-delta", "--run", folder / "run", "--model", out, "--json"))
    assert nothing == {"deltas": [], "num_rows": 0}
    assert not (out / DELTAS).exists()


def test_mistakes_are_told(trained):
    folder, log = trained
    command = ("export", "--run", folder / "run", "--out", folder / "none")
    said = fastdlrm(*command, "--tables", "fp8", code=2)
    assert "--tables fp32, bf16, int8, int4" in said
    said = fastdlrm(*command, "--calibrate", "platt", code=1)
    assert "name the dataset with --data" in said
    said = fastdlrm("predict", "--input", log.files[0], "--out", folder / "x", code=2)
    assert "give --run or --model, one of the two" in said
    assert not (folder / "none").exists()
