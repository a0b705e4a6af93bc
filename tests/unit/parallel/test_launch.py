import subprocess
import sys

import pytest

from fastdlrm import __version__
from fastdlrm.parallel.launch import RankFailed, launch


def test_every_rank_runs_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    launch(["--version"], 2)
    assert capfd.readouterr().out.split() == [__version__] * 2


def test_a_rank_that_fails_has_said_why(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RankFailed, match="was ended by exit code 2, the others") as caught:
        launch(["no-such-command"], 2)
    assert (caught.value.exit_code, caught.value.is_told) == (2, True)
    assert "no-such-command" in capfd.readouterr().err


def test_a_rank_that_is_killed_has_not() -> None:
    problem = RankFailed(3, -9)
    assert str(problem) == (
        "rank 3 was ended by SIGKILL, the others with it; run it again (train: --resume)"
    )
    assert (problem.exit_code, problem.is_told) == (1, False)


def test_the_launcher_imports_no_torch() -> None:
    """It would take seconds before the ranks start."""
    code = "import sys, fastdlrm.parallel.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
