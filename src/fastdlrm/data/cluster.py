"""Tasks done by the processes of a Ray cluster (`pip install 'fastdlrm[ray]'`).

Each worker is an actor that is started anew, elsewhere if need be, when its machine is lost; its
task is then done again. A task's bytes are reported when it is done.
"""

import logging
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdlrm import __version__
from fastdlrm.data.workers import TaskFunction
from fastdlrm.errors import ConfigError, DataError

_STORE_BYTES = 80 << 20
"""Memory of a local cluster's object store; Ray takes no less."""
_CONNECT_S = 10
_MAX_RESTARTS = 2
"""Of a worker, before the work ends."""


@contextmanager
def cluster(address: str, num_workers: int, work: Path) -> Iterator["RayWorkers | None"]:
    """Workers on a Ray cluster, ended on exit; None for an empty address.

    Args:
        address: host:port, "local" to start one on this machine, "auto" for the one that runs here.
        num_workers: Processes, each one CPU of the cluster.
        work: The work folder, which all of them must see.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or it has fewer
            CPUs than `num_workers`.
        DataError: A worker does not see `work`, or has another version of fastdlrm.
    """
    if not address:
        yield None
        return
    ray = _ray()
    is_mine = not ray.is_initialized()
    if is_mine:
        _connect(ray, address, num_workers)
    try:
        workers = RayWorkers(ray, num_workers, work)
        try:
            yield workers
        finally:
            workers.end()
    finally:
        if is_mine:
            ray.shutdown()


class RayWorkers:
    """Actors of a cluster.

    Args:
        ray: The module.
        num_workers: How many.
        work: The work folder.
    """

    num_per_process = 1

    def __init__(self, ray: Any, num_workers: int, work: Path) -> None:
        self.num_processes = num_workers
        self._ray = ray
        self._step = 0
        num_cpus = int(ray.cluster_resources().get("CPU", 0))
        if num_cpus < num_workers:
            raise ConfigError(
                f"--workers {num_workers}: the Ray cluster has {num_cpus} CPUs, and each worker "
                "takes one; ask for fewer"
            )
        remote = ray.remote(_Worker).options(
            num_cpus=1, max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_RESTARTS
        )
        self._actors = [remote.remote(str(work)) for _ in range(num_workers)]
        self._get([actor.check.remote(__version__) for actor in self._actors])

    def run(
        self,
        function: TaskFunction[Any],
        numbers: Sequence[int],
        report: Any,
        num_per_process: int,
    ) -> Generator[Any, None, None]:
        """As `Workers.run`."""
        self._step += 1
        held = [self._ray.put(function)]
        waiting = iter(numbers)
        running: dict[Any, Any] = {}

        def begin(actor: Any) -> None:
            number = next(waiting, None)
            if number is not None:
                running[actor.run.remote(self._step, held, number)] = actor

        for actor in self._actors:
            begin(actor)
        while running:
            (finished,), _ = self._ray.wait(list(running), num_returns=1)
            actor = running.pop(finished)
            result = self._get(finished)
            begin(actor)
            yield result

    def end(self) -> None:
        """End the actors and whatever they are doing."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _get(self, references: Any) -> Any:
        """Results; what went wrong in a task is raised as it was there."""
        try:
            return self._ray.get(references)
        except self._ray.exceptions.RayTaskError as problem:
            cause = problem.cause
            raise cause.with_traceback(None) from None
        except self._ray.exceptions.RayError as problem:
            raise DataError(
                f"Ray: a worker was lost for good: {str(problem).splitlines()[0]}; see the "
                "cluster's logs, give its machines more memory, and run the same command again"
            ) from problem


class _Worker:
    """A process of the cluster; keeps the function of the step it is in."""

    def __init__(self, work: str) -> None:
        self._work = Path(work)
        self._step = 0
        self._function: Any = None

    def check(self, version: str) -> None:
        """Refuse to work where the dataset would come out wrong, or not at all."""
        require_alike(self._work, version)

    def run(self, step: int, function: Sequence[Any], number: int) -> Any:
        """Do a task."""
        if step != self._step:
            self._function = None
            self._function = _ray().get(function[0])
            self._step = step
        return self._function(number, lambda num_bytes: None)


def require_alike(work: Path, version: str) -> None:
    """Check that a worker sees the work folder and runs the driver's version.

    Raises:
        DataError: It does not see it.
        ConfigError: Its version is another.
    """
    if not (work / "lock").is_file():
        raise DataError(
            f"Ray: a worker does not see {work}; inputs and --out must lie in folders that all "
            "machines share"
        )
    if version != __version__:
        raise ConfigError(
            f"Ray: a worker has fastdlrm {__version__}, this process {version}; install the same "
            "on all machines"
        )


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as problem:
        raise ConfigError(
            "--ray: the package ray is not installed; pip install 'fastdlrm[ray]'"
        ) from problem
    return ray


def _connect(ray: Any, address: str, num_workers: int) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        settings |= {
            "num_cpus": num_workers,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
    try:
        host, _, port = address.rpartition(":")
        if host:  # Ray itself goes on trying for minutes
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        ray.init(address=address, **settings)
    except (OSError, ValueError, RuntimeError) as problem:
        raise ConfigError(
            f"--ray {address}: no cluster there: {str(problem).splitlines()[0]}; start one with "
            "'ray start --head', or pass --ray local"
        ) from problem
