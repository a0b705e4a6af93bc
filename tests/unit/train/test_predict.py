"""Prediction: what it refuses, in words that help whoever predicts."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fastdlrm.data.dataset import Dataset
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.errors import DataError
from fastdlrm.train.predict import RunScorer, predict
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_dataset, tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("predict")
    dataset = tiny_dataset(folder, 1000)
    trained = Run.create(folder / "run", tiny_recipe("train.max_steps=1"), dataset)
    Trainer(trained, dataset).train()
    return trained


@pytest.fixture(scope="module")
def lines(run):
    """The first lines it was trained on."""
    return (run.folder.parent / "log" / "day_0.tsv").read_text().splitlines(keepends=True)[:20]


def scorer_of(run):
    return RunScorer(run, "last", torch.device("cpu"))


def _predict(run, raw, content, *, labelled=True):
    raw.write_text(content)
    out = raw.with_suffix(".parquet")
    return predict(scorer_of(run), [raw], out, labelled=labelled)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2\n", "2 fields, 40 are expected"),
        ("7" + "\t" * 39 + "\n", "column 'label': '7' is neither positive"),
        ("\t" * 39 + "\n", "column 'label': is missing"),
        ("0\tmany" + "\t" * 38 + "\n", "column 'I1': 'many' is not a number"),
    ],
)
def test_a_bad_row_is_refused_without_flags_of_another_command(run, lines, tmp_path, line, message):
    what_to_do = "correct the row; if the file has no labels, pass --unlabelled"
    with pytest.raises(DataError, match=rf"^log line 21: {message}.*; {what_to_do}$") as error:
        _predict(run, tmp_path / "log", "".join(lines) + line)
    assert "--on-bad-row" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_file_without_rows_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"^log: no rows; leave the file out$"):
        _predict(run, tmp_path / "log", "")


def test_a_header_without_the_label_is_a_matter_of_a_flag(tmp_path):
    header = "\t".join(tiny_recipe().data.source.columns) + "\n"
    generate(tmp_path / "log", num_rows=1000, num_files=1, gzip=False, seed=7)
    (raw,) = (tmp_path / "log").glob("*.tsv")
    raw.write_text(header + raw.read_text())
    settings = ("data.source.header=true", "data.source.columns=[]", "train.max_steps=1")
    recipe = tiny_recipe(*settings)
    prepare([raw], recipe.data, tmp_path / "data", memory_bytes=2**30)
    dataset = Dataset.open(tmp_path / "data")
    run = Run.create(tmp_path / "run", recipe, dataset)
    Trainer(run, dataset).train()
    content = "".join(line.split("\t", 1)[1] for line in raw.read_text().splitlines(True)[:5])
    with pytest.raises(DataError, match=r"lacks column 'label'; .* name, or pass --unlabelled$"):
        _predict(run, tmp_path / "raw", content)
    assert _predict(run, tmp_path / "raw", content, labelled=False) == 4


def test_files_of_one_name_are_told_apart(run, lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = [
        Path("monday/log"),
        Path("tuesday/log"),
        tmp_path / "log",
        Path(os.fsdecode(b"\xff/log")),
    ]
    for path in inputs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(lines[:2]))
    out = tmp_path / "scores"
    predict(scorer_of(run), inputs, out, labelled=True)
    files = ["monday/log", "tuesday/log", str(tmp_path / "log"), r"\xff/log"]
    assert pq.read_table(out)["file"].to_pylist() == [name for name in files for _ in range(2)]


def test_a_place_that_cannot_be_written(run, lines, tmp_path):
    (tmp_path / "log").write_text(lines[0])

    def write_to(out):
        predict(scorer_of(run), [tmp_path / "log"], out, labelled=True)

    with pytest.raises(DataError, match=r": a folder; name the Parquet file to write"):
        write_to(tmp_path)
    with pytest.raises(DataError, match=r"/log/x: the disk refuses: .* check the path, its disk"):
        write_to(tmp_path / "log" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_labels_that_are_not_there_are_a_matter_of_a_flag(run, lines, tmp_path):
    content = "".join(line.split("\t", 1)[1] for line in lines)
    with pytest.raises(DataError, match=r"^log line 1: 39 fields, .* pass --unlabelled$"):
        _predict(run, tmp_path / "log", content)
    assert _predict(run, tmp_path / "log", content, labelled=False) == 20
    content += "1\t2\n"
    with pytest.raises(DataError, match=r"^log line 21: 2 fields, .*; correct the row$"):
        _predict(run, tmp_path / "log", content, labelled=False)
