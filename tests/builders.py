"""What several tests need: commands, small datasets, and the place of real data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastdlrm.cli.main import app
from fastdlrm.config import load_config
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from fastdlrm.train.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


def fastdlrm(*arguments: object, code: int = 0) -> str:
    """Run a command as a user does; its output, or what it says on stderr where it must fail."""
    command = [sys.executable, "-m", "fastdlrm", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def invoke(*arguments: object) -> str:
    """What a command prints, run in this process: no time goes to importing torch again."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def guide_blocks(page: str) -> list[str]:
    """What a page of the documentation tells a reader to type, block by block."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run_bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run lines of a shell in a folder, the package's command at hand."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def shared_data() -> Path:
    """The folder of real data; skips the test where there is none."""
    place = os.environ.get("FASTDLRM_SHARED_DATA")
    folder = Path(place) if place else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder} (set FASTDLRM_SHARED_DATA)")
    return folder


def tiny_recipe(*overrides: str) -> Recipe:
    """The preset `tiny` with overrides."""
    return load_config("tiny", Recipe, overrides)


def tiny_dataset(folder: Path, num_rows: int = 6000, *overrides: str) -> Dataset:
    """A generated log prepared by the preset `tiny`, in folder/log and folder/data."""
    generate(folder / "log", num_rows=num_rows, num_files=2, gzip=False, seed=7)
    inputs = expand_inputs([str(folder / "log" / "day_*")])
    prepare(inputs, tiny_recipe(*overrides).data, folder / "data", memory_bytes=2**30)
    return Dataset.open(folder / "data")
