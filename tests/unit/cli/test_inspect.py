import csv
import random

import pytest

from fastdlrm.cli.inspect import inspect, starter
from fastdlrm.config import load_config
from fastdlrm.data.infer import infer
from fastdlrm.errors import ConfigError
from fastdlrm.train.recipe import Recipe


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
