"""Starts the ranks of one machine as processes, and ends them together.

It imports no torch: the ranks do. One port carries their first words, as torchrun's does.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE_S = 10.0
"""For ranks to end by themselves, and say why, once one has failed."""
POLL_S = 0.05

_Ranks = Sequence["subprocess.Popen[bytes]"]


class RankFailed(Exception):
    """A rank ended with an error; the others were ended too.

    Attributes:
        exit_code: Of the rank, 1 where a signal ended it.
        is_told: Whether the rank itself could say why.
    """

    def __init__(self, rank: int, code: int) -> None:
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        super().__init__(
            f"rank {rank} was ended by {how}, the others with it; run it again (train: --resume)"
        )
        self.exit_code = code if code > 0 else 1
        self.is_told = code > 0


def launch(arguments: Sequence[str], num_processes: int) -> None:
    """Run `python -m fastdlrm` on every rank, and wait for the end; one failed rank ends all.

    SIGTERM, SIGINT and SIGHUP are passed on: the ranks end when they are ready to.

    Args:
        arguments: Of the command line.
        num_processes: Ranks, all on this machine.

    Raises:
        RankFailed: A rank failed.
    """
    command = [sys.executable, "-m", "fastdlrm", *arguments]
    port = free_port()
    ranks: list[subprocess.Popen[bytes]] = []
    with _passed_on(ranks):
        try:
            for rank in range(num_processes):
                own = _environment(rank, num_processes, port)
                # Of their own session: a terminal's Ctrl-C reaches them once, through this process.
                ranks.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **own},
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
            failed = _wait(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    if failed:
        # the others merely miss one that a signal ended
        raise RankFailed(*min(failed.items(), key=lambda of_rank: of_rank[1] > 0))


def _wait(ranks: _Ranks) -> dict[int, int]:
    """Until all have ended, or some time after one has failed; the codes of those that failed."""
    deadline = None
    while True:
        codes = [process.poll() for process in ranks]
        failed = {rank: code for rank, code in enumerate(codes) if code}
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_S
        is_late = deadline is not None and time.monotonic() > deadline
        if None not in codes or is_late:
            return failed
        time.sleep(POLL_S)


@contextmanager
def _passed_on(ranks: _Ranks) -> Iterator[None]:
    """Pass signals on to the ranks meanwhile."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in ranks:
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank of a single machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port of this machine that no one listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
