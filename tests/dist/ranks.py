"""Run a function on several processes, as torchrun would: each finds its rank in the environment."""

import faulthandler
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable, Collection
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch


def run_ranks(
    function: Callable[..., Any],
    size: int,
    *arguments: Any,
    killed: Collection[int] = (),
    timeout_s: float = 120,
) -> list[Any]:
    """Call a function of a module on `size` fresh processes of one machine, without a GPU.

    Args:
        function: Found by name in each process; what it returns must be picklable.
        size: Number of processes.
        arguments: The same for all.
        killed: Ranks that must end by SIGKILL; None stands for what they return.
        timeout_s: After it, all are killed, and each prints where it was.

    Returns:
        What each rank returned.

    Raises:
        AssertionError: A rank failed; the message is the first one's traceback.
    """
    context = get_context("spawn")
    port = str(_free_port())
    ranks: dict[Connection, tuple[int, BaseProcess]] = {}
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "CUDA_VISIBLE_DEVICES": "",
        }
        process = context.Process(
            target=_rank, args=(function, arguments, variables, theirs, timeout_s), daemon=True
        )
        process.start()
        theirs.close()
        ranks[ours] = rank, process
    results: list[Any] = [None] * size
    try:
        _collect(results, dict(ranks), killed, time.monotonic() + timeout_s)
    finally:
        for pipe, (_, process) in ranks.items():
            process.kill()
            process.join()
            pipe.close()
    return results


def _collect(
    results: list[Any],
    ranks: dict[Connection, tuple[int, BaseProcess]],
    killed: Collection[int],
    deadline: float,
) -> None:
    """Wait for all ranks, and stop at the first that fails."""
    while ranks:
        ready = wait(list(ranks), max(deadline - time.monotonic(), 0))
        assert ready, f"ranks {sorted(rank for rank, _ in ranks.values())} did not end in time"
        for pipe in ready:
            rank, process = ranks.pop(pipe)
            try:
                failure, results[rank] = pipe.recv()
            except EOFError:  # it ended without a word
                process.join()
                is_killed = rank in killed and process.exitcode == -signal.SIGKILL
                failure = "" if is_killed else f"exit code {process.exitcode}"
            else:
                if rank in killed and not failure:
                    failure = "it was to be killed, but ended"
            assert not failure, f"rank {rank} of {len(results)}: {failure}"


def _rank(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    variables: dict[str, str],
    pipe: Connection,
    timeout_s: float,
) -> None:
    """What a process does."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(max(timeout_s - 2, 1), exit=False)
    try:
        answer = pickle.dumps(("", function(*arguments)))
    except BaseException:  # noqa: BLE001 - whatever it is, the test is to show it
        answer = pickle.dumps((traceback.format_exc(), None))
    pipe.send_bytes(answer)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
