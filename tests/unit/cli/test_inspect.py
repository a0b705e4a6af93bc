import csv
import random

import msgspec
import pytest

from fastdlrm.cli.inspect import inspect, starter
from fastdlrm.config import load_config
from fastdlrm.data.dataset_statistics import DatasetStatistics, dataset_statistics
from fastdlrm.data.infer import infer
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.train.recipe import Recipe
from tests.every_kind import every_kind


@pytest.fixture
def clicks(tmp_path):
    draw = random.Random(1)
    path = tmp_path / "clicks.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clicked", "price", "shop"])
        for _ in range(500):
            price = round(draw.lognormvariate(3, 1), 2)
            writer.writerow([int(draw.random() < 0.3), price, f"shop-{draw.randrange(20)}"])
    return path


def test_the_starter_is_a_complete_config(clicks, tmp_path):
    inference = infer(clicks)
    path = tmp_path / "clicks.toml"
    path.write_text(starter(inference))
    recipe = load_config(str(path), Recipe)
    assert recipe.data == inference.config
    assert recipe.data.label.column == "clicked"


def test_columns_and_config_are_shown(clicks, tmp_path, capsys):
    inspect(clicks, tmp_path / "clicks.toml")
    shown = capsys.readouterr().out
    assert "clicks.csv, first 500 rows" in shown
    assert "shop: text; 20 distinct" in shown
    assert (tmp_path / "clicks.toml").is_file()
    inspect(clicks)
    assert "[train.sparse_optimizer]" in capsys.readouterr().out


def test_an_existing_config_is_not_overwritten(clicks, tmp_path):
    taken = tmp_path / "taken.toml"
    taken.write_text("")
    with pytest.raises(ConfigError, match=r"taken\.toml: name a \.toml file that does not exist"):
        inspect(clicks, taken)


def test_a_dataset_is_shown_as_text_json_and_a_page(tmp_path, capsys):
    every_kind(tmp_path)
    folder, page = tmp_path / "data", tmp_path / "page.html"
    inspect(folder, html=page)
    shown = capsys.readouterr().out
    assert shown.startswith("data: 360 rows")
    assert f"page written to {page}" in shown
    assert "<title>Dataset data</title>" in page.read_text()
    inspect(folder, json=True)
    decoded = msgspec.json.decode(capsys.readouterr().out, type=DatasetStatistics)
    assert decoded == dataset_statistics(folder)


def test_options_of_the_other_kind_are_refused(clicks, tmp_path):
    for options in ({"out": tmp_path / "new.toml"}, {"sample_rows": 10}):
        with pytest.raises(
            ConfigError, match="is a dataset; --out and --sample-rows are for a raw"
        ):
            inspect(tmp_path, **options)
    with pytest.raises(ConfigError, match="is no dataset folder; --html is for a dataset"):
        inspect(clicks, html=tmp_path / "page.html")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json; a finished dataset folder has one"):
        inspect(tmp_path)
