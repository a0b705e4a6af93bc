import pytest

from fastdlrm.cli.options import bad_row_policy, bytes_of
from fastdlrm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 2**30), ("512 MiB", 2**29), ("2g", 2**31), ("1.5KB", 1536), ("7", 7)],
)
def test_sizes(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1 gallon"])
def test_not_a_size(text):
    with pytest.raises(ConfigError, match=r"expected a number and a unit, e\.g\. 512MiB or 4GiB"):
        bytes_of(text)


def test_bad_row_policy():
    assert bad_row_policy("skip") == "skip"
    with pytest.raises(ConfigError, match="--on-bad-row 'drop': error or skip is allowed"):
        bad_row_policy("drop")
