"""Starts the ranks of one machine as processes, with torch's elastic launcher."""

import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


class RankFailed(Exception):
    """A rank ended with an error; the others were ended too.

    Attributes:
        exit_code: Of the rank, 1 where a signal ended it.
    """

    def __init__(self, rank: int, exit_code: int, reason: str) -> None:
        super().__init__(f"rank {rank} failed ({reason}); all ranks were ended")
        self.exit_code = exit_code


def launch(arguments: Sequence[str], num_processes: int) -> None:
    """Run `python -m fastdlrm` on every rank, and wait for the end; one failed rank ends all.

    Args:
        arguments: Of the command line.
        num_processes: Ranks, all on this machine.

    Raises:
        RankFailed: A rank failed.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fastdlrm", *arguments)
    except ChildFailedError as problem:
        rank, failure = problem.get_first_failure()
        code = failure.exitcode
        reason = f"exit code {code}" if code >= 0 else f"signal {-code}"
        raise RankFailed(rank, code if code > 0 else 1, reason) from None
