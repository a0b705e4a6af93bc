"""The ranks of a run and what they say to each other.

One process is a world of one rank, without a process group. In a larger world tensors on a GPU go
by NCCL, all else by Gloo. Only this module reads torchrun's environment.

Shapes: W world size.
"""

import os
from collections.abc import Sequence
from math import prod
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Pending(Protocol):
    """A collective under way."""

    def wait(self) -> Any:
        """Block until its result may be read; on a GPU the current stream waits, not the caller."""
        ...


class _Done:
    """A collective that is over."""

    def wait(self) -> None:
        """Nothing is left to wait for."""


class World:
    """This process among the others.

    Collectives must be called by all ranks in the same order.

    Attributes:
        rank: Global rank, 0 .. size - 1.
        size: W.
        local_rank: Rank within this machine.
        local_size: Ranks on this machine.
        restart_count: How often torch elastic has started the ranks anew.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        restart_count: int = 0,
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.restart_count = restart_count
        self._control: Any = None

    @classmethod
    def of_environment(cls) -> "World":
        """What torchrun says; a world of one rank without it. Joins nothing yet."""
        if "RANK" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        return cls(rank, size, local_rank, local_size, restarts)

    def __enter__(self) -> "World":
        """Meet the other ranks."""
        if self.size > 1:
            backend = "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank)
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, rank=self.rank, world_size=self.size)
            self._control = dist.new_group(backend="gloo")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Part from the others. After an error nothing waits for them: the launcher ends them."""
        if self.size > 1 and kind is None:
            dist.barrier(group=self._control)
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    def all_to_all(
        self,
        received: Tensor,
        sent: Tensor,
        received_sizes: Sequence[int] | None = None,
        sent_sizes: Sequence[int] | None = None,
    ) -> Pending:
        """Send a part of a tensor to each rank, and get a part from each.

        Args:
            received: Gets the parts, in order of ranks; contiguous.
            sent: Parts in order of ranks; contiguous, kept as it is until the wait.
            received_sizes: Length of each rank's part in the first dimension; None: equal.
            sent_sizes: Likewise.
        """
        if self.size == 1:
            received.copy_(sent)
            return _Done()
        return dist.all_to_all_single(
            _bytes(received),
            _bytes(sent),
            _in_bytes(received, received_sizes),
            _in_bytes(sent, sent_sizes),
            async_op=True,
        )

    def all_reduce(self, tensor: Tensor) -> Pending:
        """Sum a tensor over all ranks, in place."""
        if self.size == 1:
            return _Done()
        return dist.all_reduce(tensor, async_op=True)

    def gather(self, value: T) -> list[T]:
        """One small object of each rank, by rank, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def broadcast(self, value: T) -> T:
        """The first rank's object."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier(group=self._control)


def _bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory: backends know bytes, not every type."""
    return tensor.view(-1).view(torch.uint8)


def _in_bytes(tensor: Tensor, sizes: Sequence[int] | None) -> list[int] | None:
    """Lengths in the first dimension as bytes."""
    if sizes is None:
        return None
    unit = prod(tensor.shape[1:]) * tensor.element_size()
    return [size * unit for size in sizes]
