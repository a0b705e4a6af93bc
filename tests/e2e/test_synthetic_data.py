"""Data without a raw log, through the command line, as the guide tells it."""

import re

import pytest

from fastdlrm.data.dataset import Dataset
from tests.builders import fastdlrm, guide_blocks, run_bash


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the guide's blocks were run."""
    folder = tmp_path_factory.mktemp("synthetic")
    blocks = guide_blocks("docs/guides/synthetic-data.md")
    assert len(blocks) == 3
    done = run_bash("\n".join(blocks), folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_the_guide_runs(folder):
    for name in ("RANDOM", "TRACED", "SINGLE", "BAGS"):
        Dataset.open(folder / name, deep=True)
    auc = re.search(r"^auc +([0-9.]+)", (folder / "stdout").read_text(), re.MULTILINE)
    assert float(auc[1]) == pytest.approx(0.5, abs=0.06)  # 500 of 2000 rows: 0.015 a deviation


def test_a_dataset_of_random_rows_is_trained_on_with_its_own_config(folder):
    """No complaint that the config's [data] is not the dataset's."""
    said = (folder / "stderr").read_text()
    assert "not what RANDOM was prepared with" not in said
    assert "not what BAGS was prepared with" in said


def test_raw_rows_are_scored_by_a_model_of_random_rows(folder):
    raw = folder / "raw.csv"
    header = [f"I{k}" for k in range(1, 9)] + [f"C{k}" for k in range(1, 9)]
    raw.write_text(",".join(header) + "\n" + ",".join(["0.5"] * 8 + ["7"] * 6 + ["1 2 3", ""]))
    out = folder / "scores.parquet"
    fastdlrm(
        "predict", "--run", folder / "RUN-RANDOM", "--input", raw, "--out", out, "--unlabelled"
    )
    assert out.is_file()


def test_a_log_of_single_ids_is_not_scored_by_a_model_of_bags(folder):
    """The model saw three ids where the log has one."""
    out = folder / "scores-bags.parquet"
    run, log = folder / "RUN-BAGS", folder / "LOG" / "day_0.tsv"
    said = fastdlrm("predict", "--run", run, "--input", log, "--out", out, code=2)
    assert "lacks column 'C1 x 3'" in said
    assert not out.exists()
