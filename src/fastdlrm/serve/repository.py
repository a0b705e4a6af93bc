"""The models a server has, MODEL_REPO/NAME/VERSION: which of them serve, and how they are.

A folder that is itself an exported model is served as version 1 of its name. Of a model in a
repository the version that serves is named by the text file NAME/current; without one it is the
highest number.

Invariants: a version answers requests only when it is ready; a version that cannot be loaded leaves
the one that serves in place.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from fastdlrm.contracts.manifest import MANIFEST
from fastdlrm.contracts.tensors import quoted
from fastdlrm.errors import ExportError, FastDLRMError, NotFound, Overloaded
from fastdlrm.serve.log import EventLog
from fastdlrm.serve.metrics import Metrics, ModelMetrics
from fastdlrm.serve.served import Engine, EngineState, Observer
from fastdlrm.serve.tally import Tally

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
CURRENT = "current"
SINGLE_VERSION = "1"

StartEngine = Callable[[Path, str, str, Observer], Awaitable[Engine]]
"""Loads, checks and warms an exported model, of a name and a version; its batches are observed."""


class BatchCounts:
    """Counts the batches of one version.

    Args:
        counted: The model's metrics.
        tally: The version's own sums.
    """

    def __init__(self, counted: ModelMetrics, tally: Tally) -> None:
        self.flushed = counted.flushed
        self.computed = tally.batch


class Version:
    """One version of a model as it is served.

    Attributes:
        name: The model's.
        number: Its folder's name.
        folder: Where it lies.
        state: READY alone answers.
        reason: Why it is in another state.
        tally: What was asked of it.
    """

    def __init__(self, name: str, number: str, folder: Path) -> None:
        self.name = name
        self.number = number
        self.folder = folder
        self.state: State = "UNAVAILABLE"
        self.reason = "not loaded"
        self.tally = Tally()
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What computes.

        Raises:
            Overloaded: The version is not ready.
        """
        if self.state != "READY" or self._engine is None:
            raise Overloaded(
                f"model {self.name!r} version {self.number} is {self.state}: {self.reason}; "
                "try again later",
                retry_after_s=1.0,
            )
        return self._engine

    @property
    def sequence(self) -> int:
        """Number of the last delta applied; 0: none."""
        return 0 if self._engine is None else self._engine.state().sequence

    async def apply(self, delta: Path) -> None:
        """Apply a delta while it serves.

        Raises:
            ExportError: It does not follow the last one, or does not fit; nothing has changed.
            ServeError: No worker could take it.
            Overloaded: The version is not ready.
        """
        await self.engine.apply(delta)

    def state_of_engine(self) -> EngineState | None:
        """How its engine is; None where it has none."""
        return None if self._engine is None else self._engine.state()

    async def start(self, start: StartEngine, counted: ModelMetrics) -> None:
        """Load it.

        Args:
            start: Starts its engine.
            counted: Where its batches are counted.

        Raises:
            FastDLRMError: It cannot be served; `reason` says why.
        """
        self.state, self.reason = "LOADING", "being loaded, checked and warmed"
        try:
            observer = BatchCounts(counted, self.tally)
            self._engine = await start(self.folder, self.name, self.number, observer)
        except BaseException as problem:
            self.state, self.reason = "UNAVAILABLE", str(problem) or type(problem).__name__
            raise
        self.state, self.reason = "READY", ""

    async def stop(self, reason: str, drain_s: float) -> None:
        """Take no more queries, answer those there are, and free all it holds.

        Args:
            reason: What `reason` is from then on.
            drain_s: How long its last queries may take; those that take longer fail.
        """
        engine, self._engine = self._engine, None
        self.state, self.reason = "UNLOADING", "answering its last queries"
        try:
            if engine is not None:
                await engine.drain(drain_s)
                await engine.stop()
        finally:
            self.state, self.reason = "UNAVAILABLE", reason


class Repository:
    """Models by name, and the version of each that serves.

    Args:
        root: MODEL_REPO, or one exported model.
        start: Starts the engine of a version.
        log: Where swaps are written.
        metrics: Where their time is counted.
        only: Names to serve; empty: all there are.
        drain_s: How long the last queries of a version may take.
    """

    def __init__(
        self,
        root: Path,
        start: StartEngine,
        *,
        log: EventLog,
        metrics: Metrics,
        only: tuple[str, ...] = (),
        drain_s: float = 60.0,
    ) -> None:
        self._drain_s = drain_s
        self._root = root
        self._start = start
        self._log = log
        self._metrics = metrics
        self._only = only
        self._versions: dict[str, dict[str, Version]] = {}
        self._serving: dict[str, Version] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Load every model's current version.

        Raises:
            ExportError: There is none, one is missing, or one cannot be served.
        """
        found = self._scan()
        for name in self._only:
            if name not in found:
                raise ExportError(
                    f"{self._root}: no model {name!r}, which the config's key models names; "
                    f"there are {', '.join(found) or 'none'}"
                )
        for name in self._only or tuple(found):
            await self.load(name)

    async def stop(self) -> None:
        """Unload all."""
        await asyncio.gather(*(self.unload(name) for name in tuple(self._serving)))

    def get(self, name: str, number: str = "") -> Version:
        """A version to ask; without a number the one that serves.

        Raises:
            NotFound: There is no such model or version, or it is not loaded.
        """
        if not number:
            serving = self._serving.get(name)
            if serving is not None:
                return serving
        version = self._versions.get(name, {}).get(number)
        if version is not None and version.state != "UNAVAILABLE":
            return version
        served = [f"{v.name} version {v.number}" for v in self._serving.values()]
        asked = f"model {quoted(name)}" + (f" version {quoted(number)}" if number else "")
        why = f" ({version.reason})" if version is not None and version.reason else ""
        raise NotFound(f"{asked} is not served{why}; served: {', '.join(served) or 'none'}")

    def current(self, name: str) -> str:
        """Number of the version that should serve, as the disk says now.

        Raises:
            NotFound: There is no such model.
        """
        self._known(name)
        self._scan()
        return self._current(name)

    def serving(self) -> list[Version]:
        """The versions that answer requests without a number, by name."""
        return [self._serving[name] for name in sorted(self._serving)]

    def index(self) -> list[Version]:
        """All versions there are, by name and number."""
        self._scan()
        return [
            version
            for name in sorted(self._versions)
            for _, version in sorted(self._versions[name].items(), key=lambda pair: int(pair[0]))
        ]

    async def load(self, name: str, number: str = "") -> Version:
        """Serve a version in place of the one that serves; without a number the current one.

        Raises:
            NotFound: There is no such model or version.
            ExportError: It cannot be served; the one that serves stays.
        """
        async with self._locks.setdefault(self._known(name), asyncio.Lock()):
            wanted = self._wanted(name, number)
            before = self._serving.get(name)
            if before is wanted and wanted.state == "READY":
                return wanted
            started = time.perf_counter()
            try:
                await wanted.start(self._start, self._metrics.of(name))
            except FastDLRMError as problem:
                self._log(
                    "version_refused",
                    level="error",
                    model=name,
                    version=wanted.number,
                    problem=str(problem),
                )
                raise
            took_s = time.perf_counter() - started
            self._serving[name] = wanted
            self._metrics.of(name).swap.observe(took_s)
            self._log("version_ready", model=name, version=wanted.number, seconds=round(took_s, 3))
            if before is not None:
                await before.stop(f"version {wanted.number} took its place", self._drain_s)
                self._log("version_stopped", model=name, version=before.number)
            return wanted

    async def unload(self, name: str) -> None:
        """Stop serving a model, once what it is asked now is answered.

        Raises:
            NotFound: It is not served.
        """
        async with self._locks.setdefault(self._known(name), asyncio.Lock()):
            version = self._serving.pop(name, None)
            if version is None:
                raise NotFound(f"model {quoted(name)} is not served; nothing to unload")
            await version.stop("unloaded", self._drain_s)
            self._log("version_stopped", model=name, version=version.number)

    def _known(self, name: str) -> str:
        if name not in self._versions and name not in self._scan():
            raise NotFound(
                f"no model {quoted(name)} in the repository; there are "
                f"{', '.join(sorted(self._versions)) or 'none'}"
            )
        return name

    def _wanted(self, name: str, number: str) -> Version:
        self._scan()
        versions = self._versions[name]
        chosen = number or self._current(name)
        if chosen not in versions:
            raise NotFound(
                f"model {quoted(name)} has no version {quoted(chosen)}; there are "
                f"{', '.join(sorted(versions, key=int))}"
            )
        return versions[chosen]

    def _current(self, name: str) -> str:
        pointer = self._root / name / CURRENT
        if (self._root / MANIFEST).is_file() or not pointer.is_file():
            return max(self._versions[name], key=int)
        return pointer.read_text(encoding="utf-8", errors="replace").strip()

    def _scan(self) -> dict[str, dict[str, Version]]:
        """Look for versions on disk; those known stay as they are."""
        for name, number, folder in find_versions(self._root):
            known = self._versions.setdefault(name, {})
            if number not in known:
                known[number] = Version(name, number, folder)
        return self._versions


def find_versions(root: Path) -> list[tuple[str, str, Path]]:
    """Name, number and folder of every version in a repository, or of one exported model.

    Raises:
        ExportError: It is no folder, or holds no version.
    """
    if (root / MANIFEST).is_file():
        return [(name_in(root), SINGLE_VERSION, root)]
    if not root.is_dir():
        raise ExportError(f"{root}: no such folder; name a model repository or an exported model")
    found = [
        (folder.parent.name, folder.name, folder)
        for folder in sorted(root.glob("*/*"))
        if folder.name.isascii() and folder.name.isdigit() and (folder / MANIFEST).is_file()
    ]
    if not found:
        raise ExportError(
            f"{root}: no exported model; one lies in {root}/NAME/NUMBER with a {MANIFEST}, "
            "or the folder itself is one"
        )
    return found


def name_in(folder: Path) -> str:
    """The name in an exported model's manifest.

    Raises:
        ExportError: The manifest cannot be read.
    """
    try:
        name = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Named).name
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise ExportError(
            f"{folder / MANIFEST}: no manifest of an exported model: {problem}; export it again"
        ) from problem
    return name


class _Named(msgspec.Struct):
    name: str
