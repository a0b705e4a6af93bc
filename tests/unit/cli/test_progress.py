"""Progress is for terminals."""

import pytest

from fastdlrm.cli.progress import bar, stages, steps, transfers


def test_nothing_is_printed_where_stderr_is_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    """The reference's preprocessing prints a line a row into whatever log it has."""
    with (
        bar("rows", 1000) as advance,
        stages() as update,
        steps() as work,
        transfers() as come,
    ):
        for row in range(1000):
            advance(1)
            update("stage", row / 1000)
            work("step", row, 1000)
            come("file", row, 1000)
    assert capfd.readouterr() == ("", "")
