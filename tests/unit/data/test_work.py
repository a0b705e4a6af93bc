"""The work folder beside the dataset to be."""

import fcntl
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastdlrm.data.journal import Journal, Record
from fastdlrm.data.work import publish, work_folder, work_path
from fastdlrm.errors import DataError


def finish_a_task(work: Path) -> None:
    Journal(work).write(Record(task="a/0", key="", files={}, result=msgspec.Raw(b"1")))


@pytest.mark.parametrize("exists", [False, True])
def test_the_dataset_appears_and_the_work_folder_goes(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    with work_folder(out) as work:
        assert work == work_path(out) == out.parent / ".out.prepare"
        (work / "large").mkdir()
        (work / "dataset").mkdir()
        (work / "dataset" / "file").write_text("x")
        finish_a_task(work)
        publish(work, work / "dataset", out)
    assert (out / "file").read_text() == "x"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_what_is_finished_is_kept_after_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    with pytest.raises(type(error)), work_folder(tmp_path / "out"):
        raise error
    assert list(tmp_path.iterdir()) == []
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(type(error)),
        work_folder(tmp_path / "out") as work,
    ):
        finish_a_task(work)
        (work / "file").write_bytes(bytes(3 << 20))
        raise error
    assert f"{work} keeps what is done, 3 MiB: the same command goes on from there" in caplog.text
    with work_folder(tmp_path / "out") as again:
        assert (again / "file").exists()


def test_a_signal_before_the_folder_is_held_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def interrupted_once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", interrupted_once)
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "out"):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_one_process_holds_it(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "out") as work,
        pytest.raises(DataError, match=r"out: another prepare is making it; wait, or name another"),
        work_folder(tmp_path / "out"),
    ):
        pytest.fail("entered")
    assert work.exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with (
        pytest.raises(DataError, match="out: exists and is not an empty folder; remove it"),
        work_folder(tmp_path / "out"),
    ):
        pytest.fail("entered")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
