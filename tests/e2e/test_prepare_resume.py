"""A killed `prepare` that is started again ends exactly as one that was never killed."""

import fcntl
import logging
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fastdlrm.contracts.manifest import DatasetManifest, read_manifest
from fastdlrm.data.config import DataConfig
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from fastdlrm.errors import DataError
from tests.builders import ROOT, fastdlrm, tiny_recipe

GIB = 2**30

# Kills itself some milliseconds after a step has come so far, wherever the work is by then.
DRIVER = """
import os, signal, sys, threading
from pathlib import Path
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from tests.builders import tiny_recipe

log, out, step, share, delay_s, workers, ray = sys.argv[1:]
armed = []

def kill(name, done, total):
    if name == step and done >= float(share) * total and not armed:
        if not float(delay_s):
            os.kill(os.getpid(), signal.SIGKILL)
        timer = threading.Timer(float(delay_s), os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
        armed.append(timer)

prepare(expand_inputs([log]), tiny_recipe().data, Path(out), memory_bytes=2**31,
        num_workers=int(workers), progress=kill, ray=ray)
if armed:
    threading.Event().wait(30)
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3,000 generated rows in 3 files."""
    folder = tmp_path_factory.mktemp("log")
    generate(folder / "log", num_rows=3000, num_files=3, gzip=True, seed=7)
    return f"{folder}/log/*.gz"


@pytest.fixture(scope="module")
def whole(log: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset of a `prepare` that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "data"
    run(log, out)
    return bytes_of(out)


def run(
    log: str,
    out: Path,
    config: DataConfig | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DatasetManifest:
    config = config or tiny_recipe().data
    inputs = expand_inputs([log])
    return prepare(inputs, config, out, memory_bytes=GIB, num_workers=1, progress=progress)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def killed(
    log: str, out: Path, step: str, share: float, delay_s: float, workers: int = 2, ray: str = ""
) -> None:
    """Run until killed in a step; a delayed kill may find nothing left to stop."""
    arguments = [log, out, step, share, delay_s, workers, ray]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    is_whole = delay_s > 0 and out.exists()
    assert done.returncode == -signal.SIGKILL or (done.returncode == 0 and is_whole), done.stderr


def test_kills_in_every_step_change_nothing(
    log: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    out = tmp_path / "data"
    for step in ("stage", "count", "merge", "encode", "write"):
        killed(log, out, step, draw.choice([0, 0.3, 0.6]), draw.uniform(0, 0.01))
        if out.exists():
            break
        assert [path.name for path in tmp_path.iterdir()] == [".data.prepare"]
        with pytest.raises(DataError, match=r"no manifest\.json"):
            read_manifest(tmp_path / ".data.prepare", DatasetManifest)
    assert step in ("encode", "write")  # the steps before were killed
    if not out.exists():
        run(log, out)
    assert bytes_of(out) == whole


class Stopped(Exception):
    """Raised by a progress function to stop the work there."""


def stop_at(step: str) -> Callable[[str, int, int], None]:
    """Stops once the first task of a step is done."""

    def progress(name: str, done: int, total: int) -> None:
        if name == step and done > 0:
            raise Stopped

    return progress


def stopped(log: str, out: Path, step: str) -> Path:
    """The work folder of a `prepare` that stopped in a step."""
    with pytest.raises(Stopped):
        run(log, out, progress=stop_at(step))
    return out.parent / f".{out.name}.prepare"


@pytest.mark.parametrize(
    ("step", "damaged"),
    [
        ("encode", "journal/stage/00001.json"),
        ("count", "staged/00002.parquet"),
        ("merge", "counts/00001-00003.run"),
        ("encode", "dataset/vocab/C1.arrow"),
        ("write", "encoded/00000.spool"),
        ("write", "journal/encode/00002.json"),
        ("write", "dataset/train/part-00000.arrow"),
    ],
)
def test_what_is_damaged_is_done_again(
    log: str,
    whole: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    step: str,
    damaged: str,
) -> None:
    work = stopped(log, tmp_path / "data", step)
    content = bytearray((work / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (work / damaged).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        run(log, tmp_path / "data")
    assert f"{damaged}" in caplog.text
    assert "damaged" in caplog.text
    assert bytes_of(tmp_path / "data") == whole


@pytest.mark.parametrize("step", ["stage", "count", "merge", "encode", "write"])
def test_what_is_done_is_not_done_again(log: str, tmp_path: Path, step: str) -> None:
    work = stopped(log, tmp_path / "data", step)
    done = {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}
    told: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        told.append(name)
        stop_at("write")(name, done, total)

    with pytest.raises(Stopped):
        run(log, tmp_path / "data", progress=progress)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    steps = ["stage", "split", "count", "merge", "encode", "write"]
    assert list(dict.fromkeys(told)) == steps[steps.index(step) :]


def test_a_changed_input_is_noticed(
    log: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate(tmp_path / "log", num_rows=3000, num_files=3, gzip=False, seed=7)
    files = sorted((tmp_path / "log").glob("day_*"))
    pattern = f"{tmp_path}/log/day_*"
    stopped(pattern, tmp_path / "data", "encode")
    lines = files[1].read_text().splitlines(keepends=True)
    files[1].write_text("".join(reversed(lines)))
    with caplog.at_level(logging.WARNING):
        run(pattern, tmp_path / "data")
    assert "stage/00001: its input, config or version has changed; it is done again" in caplog.text
    assert "stage/00000" not in caplog.text
    run(pattern, tmp_path / "fresh")
    assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "fresh")


@pytest.mark.parametrize("key", ["seed", "min_count", "missing"])
def test_a_changed_config_is_noticed(log: str, tmp_path: Path, key: str) -> None:
    data = tiny_recipe().data
    other = {
        "seed": lambda: msgspec.structs.replace(data, seed=data.seed + 1),
        "min_count": lambda: msgspec.structs.replace(
            data, sparse=tuple(msgspec.structs.replace(g, min_count=3) for g in data.sparse)
        ),
        "missing": lambda: msgspec.structs.replace(
            data, source=msgspec.structs.replace(data.source, missing=("", "1"))
        ),
    }[key]()
    work = stopped(log, tmp_path / "data", "write")
    staged = {path: path.stat().st_mtime_ns for path in (work / "journal" / "stage").iterdir()}
    with pytest.raises(Stopped):
        run(log, tmp_path / "data", other, stop_at("write"))
    # Another way to read the files asks for staging anew, and so do the lost staged files; the
    # records of the same content are written again.
    assert {path.stat().st_mtime_ns for path in staged}.isdisjoint(staged.values())
    run(log, tmp_path / "data", other)
    run(log, tmp_path / "fresh", other)
    assert bytes_of(tmp_path / "data") == bytes_of(tmp_path / "fresh")


def test_one_prepare_at_a_time(log: str, tmp_path: Path) -> None:
    work = stopped(log, tmp_path / "data", "encode")
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"data: another prepare is making it; wait"):
            run(log, tmp_path / "data")
    run(log, tmp_path / "data")


def test_the_command_line_says_that_it_goes_on(
    log: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "data"
    arguments = ["--config", "tiny", "--input", log, "--out", out, "--memory", "1GiB"]
    killed(log, out, "encode", 0.3, 0.0, workers=1)  # two could finish all before the kill
    command = [sys.executable, "-m", "fastdlrm", "prepare", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tasks were done before" in done.stderr
    assert bytes_of(out) == whole
    assert "exists and is not an empty folder" in fastdlrm("prepare", *arguments, code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
