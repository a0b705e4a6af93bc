import json

import pytest

from fastdlrm.cli.random import random, rows_by_split
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError


def test_a_dataset_is_written_and_shown(tmp_path, capsys):
    random("random", "300,0,50", tmp_path / "data")
    shown = capsys.readouterr().out
    assert "train       300 rows" in shown
    assert "table rows  602,000" in shown
    assert Dataset.open(tmp_path / "data").manifest.splits["test"].num_rows == 50
    random("random", "300,0,50", tmp_path / "again", json=True)
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["splits"]["train"]["num_rows"] == 300


def test_rows_of_splits():
    assert rows_by_split("5") == {"train": 5}
    assert rows_by_split("5, 0,7") == {"train": 5, "validation": 0, "test": 7}


@pytest.mark.parametrize("text", ["", "a", "1,2,3,4", "-1", "1,,2"])
def test_other_rows_are_refused(text):
    with pytest.raises(ConfigError, match=r"rows '.*': a whole number, or three of train"):
        rows_by_split(text)
