"""Prediction: what it refuses, in words that help whoever predicts."""

import pytest
import torch

from fastdlrm.errors import DataError
from fastdlrm.train.predict import predict
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


def _predict(run, raw, content, *, labelled=True):
    raw.write_text(content)
    out = raw.with_suffix(".parquet")
    device = torch.device("cpu")
    return predict(run, [raw], out, checkpoint="last", device=device, labelled=labelled)


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


def test_labels_that_are_not_there_are_a_matter_of_a_flag(run, lines, tmp_path):
    content = "".join(line.split("\t", 1)[1] for line in lines)
    with pytest.raises(DataError, match=r"^log line 1: 39 fields, .* pass --unlabelled$"):
        _predict(run, tmp_path / "log", content)
    assert _predict(run, tmp_path / "log", content, labelled=False) == 20
    content += "1\t2\n"
    with pytest.raises(DataError, match=r"^log line 21: 2 fields, .*; correct the row$"):
        _predict(run, tmp_path / "log", content, labelled=False)
