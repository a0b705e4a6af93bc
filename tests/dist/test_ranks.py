"""The harness of this folder: results by rank, the first failure's traceback, a time limit."""

import os
import time

import pytest

from fastdlrm.parallel.world import World
from tests.dist.ranks import run_ranks


def _gathered(factor):
    with World.of_environment() as world:
        return world.gather(world.rank * factor)


def _second_fails():
    with World.of_environment() as world:
        if world.rank == 1:
            raise KeyError("what went wrong")
        world.barrier()


def _hang():
    if os.environ["RANK"] == "1":
        time.sleep(600)
    return "done"


def test_results_come_by_rank():
    assert run_ranks(_gathered, 2, 10) == [[0, 10], [0, 10]]


def test_first_failure_is_shown():
    with pytest.raises(AssertionError, match="rank 1 of 2: (.|\n)*KeyError: 'what went wrong'"):
        run_ranks(_second_fails, 2)


def test_hanging_rank_is_named():
    with pytest.raises(AssertionError, match=r"ranks \[(0, )?1\] did not end in time"):
        run_ranks(_hang, 2, timeout_s=5)
