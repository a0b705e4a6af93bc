import pytest

from fastdlrm.cli.bench import batch_sizes, colocate, compare, effort, pass_names, table_kinds
from fastdlrm.errors import ConfigError


def test_batch_sizes():
    assert batch_sizes(None, "1,16") == (1, 16)
    assert batch_sizes(" 4, 2", "1") == (4, 2)


@pytest.mark.parametrize("text", ["0", "a", "1,,2", "-4", "4,4", "1.5"])
def test_other_batch_sizes_are_refused(text):
    with pytest.raises(ConfigError, match=r"--batches .*: different whole numbers from 1"):
        batch_sizes(text, "1")


def test_passes():
    assert pass_names("training, inference") == ("training", "inference")
    for text in ("train", "", "inference,inference"):
        with pytest.raises(ConfigError, match=r"--passes .*: inference, training or both"):
            pass_names(text)


def test_copies_are_whole_numbers_too():
    with pytest.raises(ConfigError, match=r"--copies '0': different whole numbers from 1"):
        batch_sizes("0", "1", "--copies")


def test_tables():
    assert table_kinds("both") == ("private", "shared")
    assert table_kinds("shared") == ("shared",)
    with pytest.raises(ConfigError, match="--tables 'own': private, shared or both is allowed"):
        table_kinds("own")


def test_an_sla_takes_time(tmp_path):
    with pytest.raises(ConfigError, match="--sla-ms 0: above 0 is allowed"):
        colocate("ncf", tmp_path / "c.json", device="cpu", sla_ms=0.0)


def test_effort():
    assert effort(False, None).seconds == 3
    assert effort(True, None).num_rounds == 3
    assert effort(True, 2.0).seconds == 2
    with pytest.raises(ConfigError, match="--seconds 0: above 0 is allowed"):
        effort(False, 0.0)


def test_compare_takes_two(tmp_path):
    with pytest.raises(ConfigError, match="1 result; name two or more"):
        compare([tmp_path])
    with pytest.raises(ConfigError, match="--noise 1: 0 up to, not with, 1"):
        compare([tmp_path, tmp_path], noise=1.0)
