"""Follows a repository on disk: a pointer that moves, versions that come, deltas that come.

What somebody asked for over the protocol stands until the pointer moves again: a look acts on what
has changed since the last one alone. Invariants: what was refused is tried again only when it, or
the delta before it, has changed; the order of deltas is that of their numbers.
"""

import asyncio
from pathlib import Path

from fastdlrm.contracts.delta import DELTAS, delta_path, sequences
from fastdlrm.errors import FastDLRMError
from fastdlrm.serve.log import EventLog
from fastdlrm.serve.repository import Repository, Version


class Watcher:
    """Looks at a repository now and then.

    Args:
        repository: Whose models to keep up to date.
        log: Where what is refused is written.
    """

    def __init__(self, repository: Repository, log: EventLog) -> None:
        self._repository = repository
        self._log = log
        self._pointers: dict[str, str] = {}
        self._refused: dict[Path, tuple[int, ...]] = {}

    async def run(self, every_s: float) -> None:
        """Look for ever.

        Args:
            every_s: Pause between looks.
        """
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Follow what has changed since the last look; what cannot be followed is logged.

        Raises:
            ExceptionGroup: What nobody foresaw, once all models have been looked at.
        """
        unforeseen: list[Exception] = []
        try:
            await self._repository.refresh()
        except (FastDLRMError, OSError) as problem:
            self._log("not_followed", level="error", problem=str(problem))
            return
        for version in self._repository.serving():
            try:
                await self._follow_pointer(version.name)
                await self._follow_deltas(self._repository.get(version.name))
            except (FastDLRMError, OSError) as problem:
                self._log("not_followed", level="error", model=version.name, problem=str(problem))
            except Exception as problem:  # noqa: BLE001 the other models are followed all the same
                unforeseen.append(problem)
        if unforeseen:
            raise ExceptionGroup("the repository is not followed", unforeseen)

    async def _follow_pointer(self, name: str) -> None:
        pointer = self._repository.current(name)
        before = self._pointers.get(name)
        self._pointers[name] = pointer
        serving = self._repository.get(name)
        if before not in (None, pointer) and pointer != serving.number:
            await self._repository.load(name)

    async def _follow_deltas(self, version: Version) -> None:
        folder = version.folder / DELTAS
        found = await asyncio.to_thread(sequences, folder)
        while (path := _next(folder, found, version.sequence)) is not None:
            mark = (version.sequence, *_mark(path))
            if self._refused.get(path) == mark:
                return
            try:
                await version.apply(path)
            except FastDLRMError:
                self._refused[path] = mark
                raise
            self._log("delta_applied", model=version.name, version=version.number, file=path.name)


def _next(folder: Path, found: list[int], sequence: int) -> Path | None:
    """The delta that is to follow; the lowest of those above, which may leave a gap."""
    later = [number for number in found if number > sequence]
    return delta_path(folder, later[0]) if later else None


def _mark(path: Path) -> tuple[int, int]:
    """What changes with a file's content."""
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_ino
