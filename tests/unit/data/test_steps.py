"""Steps are done once, and ask for earlier files only when they have something to do."""

import logging
from pathlib import Path

import pytest

from fastdlrm.contracts.manifest import entry_of
from fastdlrm.data.journal import Journal
from fastdlrm.data.steps import Outcome, Runner, Step
from fastdlrm.data.workers import Report, Threads


class Job:
    """Two steps: letters are written to files, then joined."""

    def __init__(self, work: Path, letters: str = "abc") -> None:
        self.work, self.letters = work, letters
        self.did: list[str] = []
        self.told: list[tuple[str, int, int]] = []
        self.runner = Runner(Journal(work), Threads(1), lambda *now: self.told.append(now))
        self.letter: Step[str] = Step(
            name="letter",
            result=str,
            keys=list(letters),
            sizes=[10] * len(letters),
            function=self.write,
            num_per_process=1,
        )
        self.joined: Step[str] = Step(
            name="join",
            result=str,
            keys=[letters],
            sizes=[1],
            function=self.join,
            num_per_process=1,
            needs=lambda: self.runner.run(self.letter),
        )

    def write(self, number: int, report: Report) -> Outcome:
        letter = self.letters[number]
        if letter == "!":
            raise ValueError(letter)
        self.did.append(letter)
        (self.work / str(number)).write_text(letter)
        report(4)
        report(100)  # more than the task's size
        return Outcome(letter, {str(number): entry_of(self.work / str(number))})

    def join(self, number: int, report: Report) -> Outcome:
        self.did.append("join")
        found = [(self.work / str(i)).read_text() for i in range(len(self.letters))]
        return Outcome("".join(found), {})


def test_done_once(tmp_path: Path) -> None:
    first = Job(tmp_path)
    assert [done.result for done in first.runner.run(first.letter)] == ["a", "b", "c"]
    assert first.runner.run(first.joined)[0].result == "abc"
    assert first.did == ["a", "b", "c", "join"]
    again = Job(tmp_path)
    assert [done.result for done in again.runner.run(again.letter)] == ["a", "b", "c"]
    assert [sorted(done.files) for done in again.runner.run(again.letter)] == [["0"], ["1"], ["2"]]
    assert again.runner.run(again.joined)[0].result == "abc"
    assert again.did == []


def test_files_that_nobody_needs_may_be_gone(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.runner.run(job.joined)
    (tmp_path / "1").unlink()
    again = Job(tmp_path)
    assert again.runner.run(again.letter, with_files=False)[1].result == "b"
    assert again.runner.run(again.joined)[0].result == "abc"
    assert again.did == []


def test_what_is_needed_is_seen_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(tmp_path)
    job.runner.run(job.letter)
    (tmp_path / "1").unlink()
    (tmp_path / "2").write_text("C")
    again = Job(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert again.runner.run(again.joined)[0].result == "abc"
    assert again.did == ["b", "c", "join"]
    assert "letter/00001: 1 is missing or damaged; it is done again" in caplog.text
    assert "letter/00002: 2 is missing or damaged; it is done again" in caplog.text
    assert "letter: 1 of 3 tasks were done before" in caplog.text


def test_another_key_is_another_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(tmp_path)
    job.runner.run(job.joined)
    other = Job(tmp_path, "abd")
    with caplog.at_level(logging.WARNING):
        assert other.runner.run(other.joined)[0].result == "abd"
    assert other.did == ["d", "join"]
    assert "letter/00002: its input, config or version has changed" in caplog.text


def test_what_was_done_before_an_error_is_kept(tmp_path: Path) -> None:
    job = Job(tmp_path, "ab!")
    with pytest.raises(ValueError, match="!"):
        job.runner.run(job.letter)
    again = Job(tmp_path, "abc")
    again.runner.run(again.letter)
    assert again.did == ["c"]


def test_progress_counts_each_task_in_full_and_once(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.runner.run(job.letter)
    assert job.told[0] == ("letter", 0, 30)
    assert job.told[-1] == ("letter", 30, 30)
    done = [done for _, done, _ in job.told]
    assert done == sorted(done)
    (tmp_path / "1").unlink()
    again = Job(tmp_path)
    again.runner.run(again.letter)
    assert [done for _, done, _ in again.told][:3] == [0, 10, 20]
    assert again.told[-1] == ("letter", 30, 30)
