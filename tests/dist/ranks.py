"""Runs a function on several processes that are ranks of one world.

Starting a process costs seconds, so the processes stay for the whole session; a function that fails
or hangs ends them, and the next one gets new ones.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from fastdlrm.parallel.launch import free_port

MOST_RANKS = 4
LIMIT_S = 120


class Ranks:
    """Processes that wait for functions to run."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(
        self,
        function: Callable[..., Any],
        size: int,
        *arguments: object,
        killed: Collection[int] = (),
    ) -> list[Any]:
        """Call a module-level function on ranks 0 .. size - 1; what each returned, by rank.

        The function makes its world by `World.of_environment`. Fails with the traceback of the
        first rank that raises. Ranks in `killed` must end by SIGKILL.
        """
        if not self._processes:
            self._start()
        port = free_port()
        pipes = self._pipes[:size]
        for rank, pipe in enumerate(pipes):
            pipe.send((function, rank, size, port, arguments))
        results: dict[int, Any] = {}
        while len(results) < size:
            left = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
            ready = wait(left, LIMIT_S)
            if not ready:
                self.stop()
                pytest.fail(f"{function.__name__}: no result within {LIMIT_S} s")
            for pipe in ready:
                rank = pipes.index(pipe)
                try:
                    is_good, value = pipe.recv()
                    if is_good and rank in killed:
                        is_good, value = False, "it was to be killed"
                except EOFError:
                    self._processes[rank].join()
                    code = self._processes[rank].exitcode
                    is_good = rank in killed and code == -signal.SIGKILL
                    value = None if is_good else f"the process died, exit code {code}"
                if not is_good:
                    self.stop()
                    pytest.fail(f"rank {rank} of {size}: {value}")
                results[rank] = value
        if killed:
            self.stop()
        return [results[rank] for rank in range(size)]

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for _ in range(MOST_RANKS):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, rank, size, port, arguments = pipe.recv()
        except EOFError:
            return
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
