"""Versions on disk and in service; engines are the formula's."""

import asyncio
import io
import json

import pytest

from fastdlrm.errors import ExportError, NotFound, Overloaded
from fastdlrm.serve.log import EventLog
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.repository import Repository, find_versions
from tests.serving import FormulaEngine, add_version


class Starter:
    """Starts formula engines; may be told to wait or to fail."""

    def __init__(self):
        self.engines = []
        self.gate = None
        self.problem = None

    async def __call__(self, folder, name, version, observer):
        if self.gate is not None:
            await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        self.engines.append(FormulaEngine(observer))
        return self.engines[-1]


def repository(root, start, **more):
    return Repository(root, start, log=EventLog(io.StringIO()), metrics=Metrics(), **more)


def test_the_highest_number_serves_unless_current_says_otherwise(tmp_path):
    for version in (2, 10, 9):
        add_version(tmp_path, version)
    models = repository(tmp_path, Starter())
    asyncio.run(models.start())
    assert models.get("shop").number == "10"
    (tmp_path / "shop" / "current").write_text("9\n")
    asyncio.run(models.load("shop"))
    assert models.get("shop").number == "9"
    with pytest.raises(NotFound, match=r"'shop' version '10' is not served \(version 9 took"):
        models.get("shop", "10")


def test_one_exported_model_is_version_1_of_its_name(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "ctr", "kind": "exported"}))
    models = repository(tmp_path, Starter())
    asyncio.run(models.start())
    assert models.get("ctr", "1").folder == tmp_path


def test_folders_that_are_no_versions_are_left_alone(tmp_path):
    add_version(tmp_path, 1)
    (tmp_path / "shop" / "2.tmp").mkdir()
    (tmp_path / "shop" / "3").mkdir()
    (tmp_path / "notes").mkdir()
    assert [(name, number) for name, number, _ in find_versions(tmp_path)] == [("shop", "1")]


def test_what_holds_no_model_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="no such folder; name a model repository"):
        find_versions(tmp_path / "none")
    with pytest.raises(ExportError, match=r"no exported model; one lies in .*NAME/NUMBER"):
        find_versions(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ExportError, match="no manifest of an exported model"):
        find_versions(tmp_path)


def test_models_asked_for_must_be_there(tmp_path):
    add_version(tmp_path, 1)
    models = repository(tmp_path, Starter(), only=("cart",))
    with pytest.raises(ExportError, match="no model 'cart', which the config's key models names"):
        asyncio.run(models.start())


def test_only_models_asked_for_are_loaded(tmp_path):
    add_version(tmp_path, 1)
    add_version(tmp_path, 1, "cart")
    models = repository(tmp_path, Starter(), only=("cart",))
    asyncio.run(models.start())
    assert [version.name for version in models.serving()] == ["cart"]


def test_a_version_answers_only_when_ready(tmp_path):
    add_version(tmp_path, 1)
    start = Starter()

    async def check():
        start.gate = asyncio.Event()
        models = repository(tmp_path, start)
        loading = asyncio.create_task(models.load("shop"))
        await asyncio.sleep(0)
        version = models.get("shop", "1")
        assert version.state == "LOADING"
        with pytest.raises(Overloaded, match=r"'shop' version 1 is LOADING: .*; try again later"):
            _ = version.engine
        with pytest.raises(NotFound, match="'shop' is not served"):
            models.get("shop")
        start.gate.set()
        await loading
        assert models.get("shop").engine is start.engines[0]

    asyncio.run(check())


def test_the_old_version_answers_its_last_queries(tmp_path):
    add_version(tmp_path, 1)
    start = Starter()

    async def check():
        models = repository(tmp_path, start)
        await models.start()
        old = start.engines[0]
        old.num_waiting = 1  # a query under way
        add_version(tmp_path, 2)
        swapping = asyncio.create_task(models.load("shop"))
        while models.get("shop").number == "1":
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not old.stopped
        assert models.get("shop", "1").state == "UNLOADING"
        old.num_waiting = 0
        await swapping
        assert old.stopped

    asyncio.run(check())


def test_a_version_that_is_cancelled_while_loading_is_not_there(tmp_path):
    add_version(tmp_path, 1)
    start = Starter()

    async def check():
        start.gate = asyncio.Event()
        models = repository(tmp_path, start)
        loading = asyncio.create_task(models.load("shop"))
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        (version,) = models.index()
        assert (version.state, version.reason) == ("UNAVAILABLE", "CancelledError")

    asyncio.run(check())


def test_a_current_version_that_is_not_there_is_an_error(tmp_path):
    add_version(tmp_path, 1)
    (tmp_path / "shop" / "current").write_text("7")
    with pytest.raises(NotFound, match="'shop' has no version '7'; there are 1"):
        asyncio.run(repository(tmp_path, Starter()).start())


def test_stop_unloads_all(tmp_path):
    add_version(tmp_path, 1)
    add_version(tmp_path, 1, "cart")
    start = Starter()
    models = repository(tmp_path, start)
    asyncio.run(models.start())
    asyncio.run(models.stop())
    assert [engine.stopped for engine in start.engines] == [True, True]
    assert models.serving() == []


def test_a_version_whose_last_queries_take_too_long_is_stopped_all_the_same(tmp_path):
    add_version(tmp_path, 1)
    start = Starter()

    async def check():
        models = repository(tmp_path, start, drain_s=0.05)
        await models.start()
        start.engines[0].num_waiting = 1
        await models.unload("shop")
        assert start.engines[0].stopped

    asyncio.run(check())
