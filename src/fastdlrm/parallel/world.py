"""The ranks of a run and what they say to each other.

One process is a world of one rank, without a process group. In a larger world tensors on a GPU go
by NCCL, all else by Gloo. Only this module and torch read torchrun's environment.

Shapes: W world size.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastdlrm.errors import ConfigError, FastDLRMError
from fastdlrm.parallel.meeting import meet

T = TypeVar("T")

OF_ANOTHER_RANK = "raised on another rank"
"""Note on an error that another rank tells of."""


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
        restart_count: How often torch elastic has started the ranks anew, as far as this rank
            knows: it counts only the failures of its own machine.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        restart_count: int = 0,
        *,
        on_gpu: bool = False,
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.restart_count = restart_count
        self._on_gpu = on_gpu
        self._control: Any = None

    @classmethod
    def of_environment(cls, device: torch.device | str = "cpu") -> "World":
        """What torchrun says; a world of one rank without it. Joins nothing yet.

        Args:
            device: Where the ranks compute; of GPUs each takes that of its local rank.
        """
        if "RANK" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        on_gpu = torch.device(device).type == "cuda"
        return cls(rank, size, local_rank, local_size, restarts, on_gpu=on_gpu)

    def __enter__(self) -> "World":
        """Meet the other ranks, and share this machine's cores with those on it."""
        if self.size > 1:
            backend = "gloo"
            if self._on_gpu:
                backend = "cpu:gloo,cuda:nccl"
                with self.alike():
                    self._require_gpus(torch.cuda.device_count())
                torch.cuda.set_device(self.local_rank)
            else:
                cores = len(os.sched_getaffinity(0))
                torch.set_num_threads(max(1, cores // self.local_size))
            store, is_again = meet(self.rank, self.size)
            self.restart_count = max(self.restart_count, int(is_again))
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
            self._control = dist.new_group(backend="gloo")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Part from the others. After an error nothing waits for them: the launcher ends them.

        Raises:
            FastDLRMError: What failed is the talk: another rank is gone.
        """
        if self.size == 1:
            return
        if kind is None:
            dist.barrier(group=self._control)
            dist.destroy_process_group()
        elif isinstance(problem, RuntimeError) and _is_of_talk(problem):
            # without the place in Gloo's source, and its guess
            said = re.sub(r"^\[[^]]*\] |\. This is typically .*", "", str(problem).splitlines()[0])
            raise FastDLRMError(
                f"rank {self.rank}: another rank is gone: {said}; see what ended it, and continue "
                "with --resume"
            ) from problem

    def beside(self) -> "World":
        """The same ranks with a group of their own for `gather`, `collect` and `barrier`.

        For a thread that talks while this world talks too. Every rank must call it.
        """
        other = World(self.rank, self.size, self.local_rank, self.local_size, self.restart_count)
        if self.size > 1:
            other._control = dist.new_group(backend="gloo")
        return other

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    @property
    def control(self) -> Any:
        """The Gloo group of small objects; None in a world of one rank."""
        return self._control

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

    def collect(self, value: T) -> list[T]:
        """One object of each rank, by rank, on the first; nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self._control)
        return values or []

    def on_first(self, action: Callable[[], T]) -> T:
        """Let the first rank do something; all get its result, or raise what it raised."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = action()
            except FastDLRMError as problem:
                outcome[1] = problem
        dist.broadcast_object_list(outcome, src=0, group=self._control)
        if outcome[1] is not None:
            raise self.of_rank(0, outcome[1])
        result: T = outcome[0]
        return result

    def on_each(self, action: Callable[[], T]) -> T:
        """Let every rank do something; if any fails, all raise what the first of these raised."""
        results: list[T] = []
        problem: FastDLRMError | None = None
        try:
            results.append(action())
        except FastDLRMError as raised:
            problem = raised
        for rank, found in enumerate(self.gather(problem)):
            if found is not None:
                raise self.of_rank(rank, found)
        return results[0]

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Around what all ranks do alike: of a machine's ranks the first alone tells an error."""
        try:
            yield
        except FastDLRMError as problem:
            if self.local_rank:
                problem.add_note(OF_ANOTHER_RANK)
            raise

    def any(self, is_so: bool) -> bool:
        """Whether it is so on any rank."""
        if self.size == 1:
            return is_so
        found = torch.tensor(int(is_so))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return bool(found)

    def _require_gpus(self, num_gpus: int) -> None:
        if self.local_size > num_gpus:
            raise ConfigError(
                f"{self.local_size} ranks on this machine, {num_gpus} GPUs; start a rank a GPU, or "
                "set train.device = 'cpu'"
            )

    def of_rank(self, rank: int, problem: FastDLRMError) -> FastDLRMError:
        """An error to raise; one of another rank, which tells it itself, is marked."""
        if rank != self.rank:
            problem.add_note(OF_ANOTHER_RANK)
        return problem

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier(group=self._control)


ALONE = World()
"""A world of one rank."""


def _is_of_talk(problem: RuntimeError) -> bool:
    """Whether an error comes from the backend: NCCL's have a type, Gloo's only a text."""
    return isinstance(problem, dist.DistError) or "gloo" in str(problem)


def _bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory: backends know bytes, not every type."""
    return tensor.view(-1).view(torch.uint8)


def _in_bytes(tensor: Tensor, sizes: Sequence[int] | None) -> list[int] | None:
    """Lengths in the first dimension as bytes."""
    if sizes is None:
        return None
    unit = prod(tensor.shape[1:]) * tensor.element_size()
    return [size * unit for size in sizes]
