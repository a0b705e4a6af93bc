import pytest

from fastdlrm.errors import ConfigError
from fastdlrm.serve.access import Access, read_token


def test_without_a_token_all_may_ask():
    assert read_token("", "", None) is None
    assert Access(None).is_open
    assert Access(None).allows(None)


def test_a_token_comes_from_a_file_or_a_variable(tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    assert read_token(str(tmp_path / "token"), "", None) == b"s3cret"
    assert read_token("", "TOKEN", " s3cret ") == b"s3cret"


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (b"Bearer s3cret", True),
        (b"bearer  s3cret", True),
        (b"Bearer s3cretx", False),
        (b"Bearer ", False),
        (b"Basic s3cret", False),
        (b"Bearer \xff\xfe", False),
        (b"", False),
        (None, False),
    ],
)
def test_only_the_token_opens(given, allowed):
    assert Access(b"s3cret").allows(given) is allowed


def test_a_token_that_cannot_be_had_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"security.token_file .*: cannot be read"):
        read_token(str(tmp_path / "none"), "", None)
    with pytest.raises(ConfigError, match=r"security.token_env TOKEN: the environment variable is"):
        read_token("", "TOKEN", None)
    for value in ("", "  ", "two words", "\u00fcber"):
        with pytest.raises(ConfigError, match="a token is one word of ASCII characters"):
            read_token("", "TOKEN", value)
