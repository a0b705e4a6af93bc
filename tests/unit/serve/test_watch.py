"""A repository on disk is followed: what changes, and nothing else."""

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fastdlrm.contracts.delta import DELTAS, Delta, write_delta
from fastdlrm.serve.log import EventLog
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.repository import Repository
from fastdlrm.serve.watch import Watcher
from tests.serving import add_version
from tests.unit.serve.test_repository import Starter


def delta(sequence: int) -> Delta:
    return Delta("C1", np.array([1]), np.ones((1, 4), np.float32), sequence, 1000.0 + sequence)


class Followed:
    """A repository, its watcher, and the events that were logged."""

    def __init__(self, root: Path) -> None:
        self.written = io.StringIO()
        log = EventLog(self.written)
        self.starter = Starter()
        self.models = Repository(root, self.starter, log=log, metrics=Metrics())
        self.watcher = Watcher(self.models, log)

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.written.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    @property
    def number(self) -> str:
        return self.models.get("shop").number


def test_a_pointer_that_moves_is_followed_and_what_was_asked_for_stands(tmp_path):
    async def scenario() -> None:
        for version in (1, 2, 3):
            add_version(tmp_path, version)
        (tmp_path / "shop" / "current").write_text("1\n")
        followed = Followed(tmp_path)
        await followed.models.start()
        await followed.watcher.look()
        assert followed.number == "1"
        (tmp_path / "shop" / "current").write_text("2\n")
        await followed.watcher.look()
        assert followed.number == "2"
        await followed.models.load("shop", "3")
        await followed.watcher.look()
        assert followed.number == "3"

    asyncio.run(scenario())


def test_without_a_pointer_a_higher_number_takes_over(tmp_path):
    async def scenario() -> None:
        add_version(tmp_path, 9)
        followed = Followed(tmp_path)
        await followed.models.start()
        await followed.watcher.look()
        add_version(tmp_path, 10)
        await followed.watcher.look()
        assert followed.number == "10"

    asyncio.run(scenario())


def test_a_bad_version_is_refused_once_and_the_old_one_serves(tmp_path):
    async def scenario() -> None:
        add_version(tmp_path, 1)
        followed = Followed(tmp_path)
        await followed.models.start()
        await followed.watcher.look()
        (tmp_path / "shop" / "current").write_text("7\n")
        await followed.watcher.look()
        await followed.watcher.look()
        assert followed.number == "1"
        (event,) = followed.events("not_followed")
        assert "no version '7'; there are 1" in str(event["problem"])

    asyncio.run(scenario())


def test_deltas_are_applied_in_order_and_a_gap_stops_them(tmp_path):
    async def scenario() -> None:
        add_version(tmp_path, 1)
        folder = tmp_path / "shop" / "1" / DELTAS
        followed = Followed(tmp_path)
        await followed.models.start()
        write_delta(folder, delta(2))
        write_delta(folder, delta(1))
        await followed.watcher.look()
        version = followed.models.get("shop")
        assert version.sequence == 2
        write_delta(folder, delta(4))
        for _ in range(3):
            await followed.watcher.look()
        assert version.sequence == 2
        (event,) = followed.events("not_followed")
        assert "delta 4 after 2" in str(event["problem"])
        write_delta(folder, delta(3))
        await followed.watcher.look()
        assert version.sequence == 4

    asyncio.run(scenario())


def test_what_nobody_foresaw_at_one_model_leaves_the_others_followed(tmp_path):
    async def scenario() -> None:
        for name in ("a", "shop"):
            add_version(tmp_path, 1, name)
            write_delta(tmp_path / name / "1" / DELTAS, delta(1))
        followed = Followed(tmp_path)
        await followed.models.start()
        followed.starter.engines[0].delta_problem = ZeroDivisionError("odd")
        with pytest.raises(ExceptionGroup, match="the repository is not followed") as raised:
            await followed.watcher.look()
        assert [str(problem) for problem in raised.value.exceptions] == ["odd"]
        assert followed.models.get("a").sequence == 0
        assert followed.models.get("shop").sequence == 1

    asyncio.run(scenario())
