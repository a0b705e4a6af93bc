"""A run's folder: whose [data] it holds, and what it may not be."""

import logging

import pytest
import torch

from fastdlrm.errors import ConfigError
from fastdlrm.train.run import Run
from tests.builders import tiny_dataset, tiny_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("run"), 1000)


def test_a_run_holds_the_data_section_of_its_dataset(dataset, tmp_path, caplog):
    """Raw files to score look like those of the dataset, whatever config the training had."""
    other = tiny_recipe("data.source={format='parquet'}", "model.top_mlp=[4]")
    with caplog.at_level(logging.WARNING):
        Run.create(tmp_path / "run", other, dataset)
    assert "[data] of the config is not what" in caplog.text
    recipe = Run.open(tmp_path / "run").recipe
    assert recipe.data == tiny_recipe().data
    assert recipe.model == other.model
    assert Run.resume(tmp_path / "run", other, dataset).recipe == recipe


def test_nothing_is_said_where_the_data_sections_agree(dataset, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        Run.create(tmp_path / "run", tiny_recipe(), dataset)
    assert caplog.text == ""


def test_a_file_is_no_folder(dataset, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*/run: not a folder; name one to be made"):
        Run.create(tmp_path / "run", tiny_recipe(), dataset)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.bottom_mlp=[]", r"model\.bottom_mlp is empty, the dataset has \d+ dense features"),
        pytest.param(
            "train.device='cuda'",
            r"train\.device is 'cuda': .* set train\.device = 'auto'",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="needs a machine without a CUDA device"
            ),
        ),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(dataset, tmp_path, setting, message):
    """So the next try, with the config mended, finds no folder in its way."""
    with pytest.raises(ConfigError, match=message):
        Run.create(tmp_path / "run", tiny_recipe(setting), dataset)
    assert list(tmp_path.iterdir()) == []
    Run.create(tmp_path / "run", tiny_recipe(), dataset)
