"""Progress is for terminals."""

import pytest

from fastdlrm.cli.progress import bar, steps


def test_nothing_is_printed_where_stderr_is_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    """The reference's preprocessing prints a line a row into whatever log it has."""
    with bar("rows", 1000) as advance, steps() as update:
        for row in range(1000):
            advance(1)
            update("stage", row, 1000)
    assert capfd.readouterr() == ("", "")
