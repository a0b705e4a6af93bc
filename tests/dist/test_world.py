"""What ranks say to each other, and what they say when one of them fails or is gone."""

import os
import signal

import pytest
import torch

from fastdlrm.errors import ConfigError, DataError, FastDLRMError
from fastdlrm.parallel.world import ALONE, OF_ANOTHER_RANK, World
from tests.dist.ranks import Ranks


def _raise(problem: Exception) -> None:
    raise problem


def _talk() -> dict[str, object]:
    with World.of_environment() as world:
        rank = world.rank
        sent = torch.tensor([[1, 2, 3], [4, 5, 6, 7]][rank])
        received = torch.empty([4, 3][rank], dtype=torch.int64)
        world.all_to_all(received, sent, [[1, 3], [2, 1]][rank], [[1, 2], [3, 1]][rank]).wait()
        rows = torch.tensor([[rank, rank], [7, 8]], dtype=torch.bfloat16)
        equal = torch.empty_like(rows)
        world.all_to_all(equal, rows).wait()
        total = torch.tensor([1.0, 10.0 * rank])
        world.all_reduce(total).wait()
        return {
            "received": received.tolist(),
            "equal": equal.tolist(),
            "total": total.tolist(),
            "gathered": world.gather(10 * rank),
            "collected": world.collect(10 * rank),
            "of first": world.on_first(lambda: f"rank {rank}"),
            "of each": world.on_each(lambda: f"rank {rank}"),
            "any": (world.any(rank == 1), world.any(False)),
            "beside": world.beside().gather(rank),
        }


def test_collectives(ranks: Ranks) -> None:
    zero, one = ranks.run(_talk, 2)
    assert (zero.pop("received"), one.pop("received")) == ([1, 4, 5, 6], [2, 3, 7])
    assert (zero.pop("equal"), one.pop("equal")) == ([[0, 0], [1, 1]], [[7, 8], [7, 8]])
    assert (zero.pop("collected"), one.pop("collected")) == ([0, 10], [])
    assert (zero.pop("of each"), one.pop("of each")) == ("rank 0", "rank 1")
    assert zero == one
    assert one == {
        "total": [2.0, 10.0],
        "gathered": [0, 10],
        "of first": "rank 0",
        "any": (True, False),
        "beside": [0, 1],
    }


def _notes(action: object, text: str) -> list[str]:
    with pytest.raises(DataError, match=text) as caught:
        action()
    return getattr(caught.value, "__notes__", [])


def _fail() -> list[list[str]]:
    with World.of_environment() as world:

        def fail_on_one() -> None:
            if world.rank == 1:
                raise DataError("bad row")

        return [
            _notes(lambda: world.on_first(lambda: _raise(DataError("no file"))), "no file"),
            _notes(lambda: world.on_each(fail_on_one), "bad row"),
            _notes(lambda: _raise_alike(world), "loss is NaN"),
        ]


def _raise_alike(world: World) -> None:
    with world.alike():
        raise DataError("loss is NaN")


def test_one_rank_tells_an_error(ranks: Ranks) -> None:
    """The others raise it too, with a note that keeps it off their stderr."""
    told, not_told = [], [OF_ANOTHER_RANK]
    assert ranks.run(_fail, 2) == [[told, not_told, told], [not_told, told, not_told]]


def _lose_one() -> str:
    with pytest.raises(FastDLRMError) as caught, World.of_environment() as world:
        world.barrier()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.all_reduce(torch.zeros(10**6)).wait()
    return str(caught.value)


def test_a_rank_that_is_gone(ranks: Ranks) -> None:
    said, _ = ranks.run(_lose_one, 2, killed=[1])
    assert said.startswith("rank 0: another rank is gone: ")
    assert "gloo" not in said
    assert "typically" not in said
    assert said.endswith("; see what ended it, and continue with --resume")


def test_other_errors_pass_through_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), World():
        raise RuntimeError("shapes differ")


def test_a_rank_a_gpu() -> None:
    with pytest.raises(ConfigError, match="3 ranks on this machine, 2 GPUs; start a rank a GPU"):
        World(local_size=3, size=3)._require_gpus(2)


def test_torchrun_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert World.of_environment().size == 1
    said = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}
    for name, value in {**said, "TORCHELASTIC_RESTART_COUNT": 2}.items():
        monkeypatch.setenv(name, str(value))
    world = World.of_environment()
    found = (world.rank, world.size, world.local_rank, world.local_size, world.restart_count)
    assert found == (5, 8, 1, 4, 2)
    assert not world.is_first


def test_one_process_asks_nobody() -> None:
    received = torch.zeros(2)
    ALONE.all_to_all(received, torch.tensor([1.0, 2.0])).wait()
    assert received.tolist() == [1, 2]
    assert (ALONE.gather(3), ALONE.collect(3), ALONE.any(True), ALONE.any(False)) == (
        [3],
        [3],
        True,
        False,
    )
    assert _notes(lambda: ALONE.on_each(lambda: _raise(DataError("bad"))), "bad") == []
