"""The whole pipeline through the command line, as a user types it."""

import gzip
import json
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from fastdlrm.data.generate import generate
from tests.builders import fastdlrm, shared_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with log, data and run, made by the commands of the README."""
    folder = tmp_path_factory.mktemp("cli")
    fastdlrm(
        "generate", "--rows", 20000, "--files", 2, "--gzip", "--seed", 7, "--out", folder / "log"
    )
    glob = folder / "log" / "day_*.gz"
    fastdlrm("prepare", "--config", "tiny", "--input", glob, "--out", folder / "data")
    fastdlrm("train", "--config", "tiny", "--data", folder / "data", "--out", folder / "run")
    return folder


def test_eval_prints_the_metrics(run):
    values = json.loads(fastdlrm("eval", "--run", run / "run", "--data", run / "data", "--json"))
    assert {"auc", "log_loss", "ne", "calibration", "ece", "accuracy", "num_samples"} <= set(values)
    assert values["auc"] > 0.55
    assert 1500 < values["num_samples"] < 2500
    assert "calibration" in fastdlrm("eval", "--run", run / "run", "--data", run / "data")


def test_predict_scores_raw_files_in_order(run):
    out = run / "scores.parquet"
    glob = run / "log" / "day_*.gz"
    report = json.loads(
        fastdlrm("predict", "--run", run / "run", "--input", glob, "--out", out, "--json")
    )
    scores = pq.read_table(out)
    assert report["num_rows"] == len(scores) == 20000
    files = [str(run / "log" / name) for name in ("day_0.gz", "day_1.gz")]
    assert scores["file"].unique().to_pylist() == files
    assert scores["row"].to_pylist() == [*range(10000), *range(10000)]


def test_predict_equals_eval(run):
    """Raw rows encoded anew get the scores that the dataset's rows get: the AUCs agree exactly."""
    out = run / "scores-again.parquet"
    fastdlrm("predict", "--run", run / "run", "--input", run / "log" / "day_*.gz", "--out", out)
    labels = []
    for name in ("day_0.gz", "day_1.gz"):
        with gzip.open(run / "log" / name, "rt") as file:
            labels += [line.split("\t", 1)[0] == "1" for line in file]
    scores = pq.read_table(out)["score"].to_numpy()
    whole = roc_auc_score(labels, scores)
    parts = [
        json.loads(
            fastdlrm(
                "eval", "--run", run / "run", "--data", run / "data", "--split", split, "--json"
            )
        )
        for split in ("train", "validation", "test")
    ]
    assert sum(p["num_samples"] for p in parts) == len(scores)
    mean = sum(p["num_positives"] * p["calibration"] for p in parts) / len(scores)
    assert scores.mean() == pytest.approx(mean, rel=1e-5)
    assert min(p["auc"] for p in parts) - 0.02 < whole < max(p["auc"] for p in parts) + 0.02


def test_predict_unlabelled(run):
    with gzip.open(run / "log" / "day_0.gz", "rt") as file:
        lines = [next(file) for _ in range(100)]
    raw = run / "unlabelled.tsv"
    raw.write_text("".join(line.split("\t", 1)[1] for line in lines))
    out = run / "unlabelled.parquet"
    fastdlrm("predict", "--run", run / "run", "--input", raw, "--unlabelled", "--out", out)
    whole = run / "labelled.parquet"
    fastdlrm("predict", "--run", run / "run", "--input", run / "log" / "day_0.gz", "--out", whole)
    labelled = pq.read_table(whole)["score"].to_numpy()[:100]
    assert pq.read_table(out)["score"].to_numpy() == pytest.approx(labelled, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--config", "nope", "--data", "x", "--out", "y"], 2, "config 'nope': neither a"),
        (["train", "--config", "tiny", "--data", "x", "--out", "y"], 1, "x: no manifest.json"),
        (
            ["train", "--config", "tiny", "--data", "x", "--out", "y", "--set", "train.lr=1"],
            2,
            "unknown key `lr` - at `$.train`",
        ),
        (["eval", "--run", "x", "--data", "y"], 1, "x: no manifest.json; a finished run folder"),
        (["generate"], 2, "--rows"),
        (["inspect", "log", "--out", "gone/x.toml"], 1, "'gone/x.toml'; check the path, its disk"),
        (["inspect", "log", "--sample-rows", "0"], 2, "greater than or equal to"),
        (
            ["prepare", "--config", "tiny", "--input", "log", "--out", "z", "--workers", "0"],
            2,
            "greater than or equal to",
        ),
        # A flag takes no value, so none can be misread.
        (["generate", "--rows", "9", "--out", "z", "--gzip=False"], 2, "does not take a value"),
        (["prepare", "--config", "tiny", "--input", "gone.gz", "--out", "z"], 1, "gone.gz"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").write_text("label,x,y\n" + "1,2,a\n0,3,b\n" * 9)
    stderr = fastdlrm(*arguments, code=code)
    assert message in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_prepare_takes_its_folder_away(number, tmp_path):
    generate(tmp_path / "log", num_rows=300_000, num_files=1, gzip=False, seed=7)
    out = tmp_path / "out" / "data"
    out.parent.mkdir()
    raw = str(tmp_path / "log" / "day_0.tsv")
    command = ["-m", "fastdlrm", "prepare", "--config", "tiny", "--input", raw, "--out", str(out)]
    # A shell's background job would ignore SIGINT.
    process = subprocess.Popen(
        [sys.executable, *command],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not any(out.parent.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert b"Traceback" not in stderr
    assert list(out.parent.iterdir()) == []


def test_help_lists_the_commands_in_data_flow_order():
    text = fastdlrm("--help")
    names = ["doctor", "generate", "inspect", "prepare", "train", "eval", "predict"]
    places = [text.index(f" {name} ") for name in names]
    assert places == sorted(places)


def test_help_imports_no_heavy_library():
    """What makes `fastdlrm --help` quick; the time itself depends on the machine."""
    code = (
        "import sys, fastdlrm.cli.main; "
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'duckdb', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_prepare_imports_no_torch():
    code = "import sys, fastdlrm.data.prepare, fastdlrm.train.recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "pattern", "least_auc", "most_log_loss"),
    [
        ("criteo-sample", ["criteo_sample/day_*.gz"], 0.68, 0.145),
        ("adult", ["adult/adult.data.gz", "adult/adult.test.gz"], 0.927, 0.278),
    ],
)
def test_public_data(preset, pattern, least_auc, most_log_loss, tmp_path):
    """One seed; the bounds leave room for its standard error. Five seeds: bench_accuracy.py."""
    inputs = [x for p in pattern for x in ("--input", shared_data() / p)]
    fastdlrm("prepare", "--config", preset, *inputs, "--out", tmp_path / "data")
    fastdlrm("train", "--config", preset, "--data", tmp_path / "data", "--out", tmp_path / "run")
    values = json.loads(
        fastdlrm("eval", "--run", tmp_path / "run", "--data", tmp_path / "data", "--json")
    )
    assert values["auc"] > least_auc
    assert values["log_loss"] < most_log_loss


def test_shuffled_labels_teach_nothing(tmp_path):
    """Labels drawn without regard to the features: the AUC on 30,000 test rows is 0.5 +- 0.01."""
    log, data = tmp_path / "log", tmp_path / "data"
    fastdlrm("generate", "--rows", 60000, "--shuffle-labels", "--seed", 3, "--out", log)
    half = "data.split.test={by='hash', amount=0.5}"
    fastdlrm("prepare", "--config", "tiny", "--input", log / "day_*", "--out", data, "--set", half)
    fastdlrm("train", "--config", "tiny", "--data", data, "--out", tmp_path / "run", "--set", half)
    values = json.loads(fastdlrm("eval", "--run", tmp_path / "run", "--data", data, "--json"))
    assert abs(values["auc"] - 0.5) < 0.01
