import json
import logging

import numpy as np
import pytest

from fastdlrm.cli.trace import generate, profile
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError, DataError
from tests.builders import tiny_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two traces, text and .npy, and a dataset."""
    folder = tmp_path_factory.mktemp("trace")
    (folder / "first.txt").write_text("1, 2, 3, 4, 5, 3, 4, 1, 1, 6, 3\n")
    np.save(folder / "second.npy", np.array([7, 7, 7, 9]))
    tiny_dataset(folder / "tiny", 2000)
    return folder


def test_profiles_of_files(folder, tmp_path, capsys):
    inputs = [str(folder / "first.txt"), str(folder / "second.npy")]
    profile(tmp_path, inputs, json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert first["file"] == str(tmp_path / "first_0.log")
    assert (first["num_ids"], first["new_share"]) == (6, pytest.approx(6 / 11))
    assert first["mean_distance"] == pytest.approx(16 / 11)
    assert second["file"] == str(tmp_path / "second_1.log")
    assert (tmp_path / "second_1.log").read_text() == "7, 9\n0, 1\n0.5, 1.0\n"
    profile(tmp_path, inputs)
    assert "6 ids, 54.55% of accesses new, mean distance 1.5" in capsys.readouterr().out


def test_profiles_of_a_datasets_features(folder, tmp_path, capsys, caplog):
    data = folder / "tiny" / "data"
    with caplog.at_level(logging.WARNING):
        profile(tmp_path, data=data, split="test", json=True)
    assert not caplog.records
    summaries = json.loads(capsys.readouterr().out)
    dataset = Dataset.open(data)
    names = [feature.name for feature in dataset.schema.sparse]
    assert [s["file"] for s in summaries] == [
        str(tmp_path / f"{name}_{j}.log") for j, name in enumerate(names)
    ]
    ids = [batch.sparse.ids.view(len(names), -1) for batch in dataset.split("test").batches(10_000)]
    assert [s["num_ids"] for s in summaries] == [len(row.unique()) for row in ids[0]]


def test_a_shuffled_split_is_warned_of(folder, tmp_path, caplog):
    profile(tmp_path, data=folder / "tiny" / "data")
    assert "train was shuffled when it was made, so its order says nothing" in caplog.text


@pytest.mark.parametrize("name", ["ids.npy", "ids.txt"])
def test_a_generated_trace(folder, tmp_path, name, capsys):
    profile(tmp_path, [str(folder / "second.npy")])
    for out in (tmp_path / name, tmp_path / f"again-{name}"):
        generate([str(tmp_path / "second_0.log")], "1000", out)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    out = tmp_path / "profile-again"
    capsys.readouterr()
    profile(out, [str(tmp_path / name)], json=True)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["num_ids"] == 2
    assert found["mean_distance"] == pytest.approx(1.5, abs=0.1)  # half 1, half the front: 2


def test_a_generated_dataset(folder, tmp_path, capsys):
    data = folder / "tiny" / "data"
    profile(tmp_path, data=data, split="test")
    overrides = ["data.sparse.0.encoding=hash", "data.shuffle=false"]
    generate(
        [str(tmp_path / "*.log")],
        "900,0,100",
        tmp_path / "data",
        config="tiny",
        overrides=overrides,
        rule="padded",
    )
    made = Dataset.open(tmp_path / "data", deep=True)
    assert {name: info.num_rows for name, info in made.manifest.splits.items()} == {
        "train": 900,
        "test": 100,
    }
    assert made.manifest.config["random"]["rule"] == "padded"
    assert [entry.name for entry in made.manifest.inputs] == [
        f"{f.name}_{j}.log" for j, f in enumerate(made.schema.sparse)
    ]
    assert "900 rows" in capsys.readouterr().out


def test_input_and_data_exclude_each_other(folder, tmp_path):
    for arguments in ({}, {"inputs": ["a"], "data": folder}):
        with pytest.raises(ConfigError, match="trace profile: give either --input or --data"):
            profile(tmp_path, **arguments)


def test_a_trace_file_takes_one_profile(folder, tmp_path):
    profile(tmp_path, [str(folder / "first.txt"), str(folder / "second.npy")])
    with pytest.raises(ConfigError, match="--profile: 2 profiles for one file of ids; name one"):
        generate([str(tmp_path / "*.log")], "10", tmp_path / "ids.npy")


def test_a_trace_file_has_no_splits(folder, tmp_path):
    profile(tmp_path, [str(folder / "first.txt")])
    with pytest.raises(ConfigError, match="--length '10,5': one number for a file; splits need"):
        generate([str(tmp_path / "first_0.log")], "10,5", tmp_path / "ids.npy")


def test_a_rule_that_is_none_is_refused(folder, tmp_path):
    profile(tmp_path, [str(folder / "first.txt")])
    with pytest.raises(ConfigError, match="--rule 'old': paper, padded, deferred is allowed"):
        generate([str(tmp_path / "first_0.log")], "10", tmp_path / "ids.npy", rule="old")


def test_an_empty_trace_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt: no id in it"):
        profile(tmp_path, [str(tmp_path / "empty.txt")])
