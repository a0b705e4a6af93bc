import pytest

from fastdlrm.cli.multihot import multihot
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import ConfigError
from tests.builders import tiny_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("multihot"), 2000).folder


def test_bags_are_written_and_shown(data, tmp_path, capsys):
    multihot(data, tmp_path / "bags", "3,1,1,2,1,4", "pareto")
    assert "ids a row   12" in capsys.readouterr().out
    config = Dataset.open(tmp_path / "bags").manifest.config["multihot"]
    assert config["sizes"] == [3, 1, 1, 2, 1, 4]
    assert config["distribution"] == "pareto"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("3,x",), "--sizes '3,x': mlperf, or whole numbers separated by commas"),
        (("mlperf",), r"multi-hot sizes \[3, 2, .*\] for 6 sparse features; one each"),
        (("1,1,1,1,1,1", "zipf"), "--distribution 'zipf': uniform or pareto is allowed"),
    ],
)
def test_what_cannot_be_made_is_refused(data, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        multihot(data, tmp_path / "bags", *arguments)
