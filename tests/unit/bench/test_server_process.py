import pytest

from fastdlrm.bench.server_process import server_process
from fastdlrm.errors import ServeError


def test_a_server_that_ends_says_why(tmp_path):
    with (
        pytest.raises(ServeError, match=r"the server under test: ended with \d+; its log ends: .*"),
        server_process(tmp_path / "none", tmp_path / "log"),
    ):
        raise AssertionError("it is not ready")
