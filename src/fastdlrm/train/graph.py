"""Whole train steps as one CUDA graph: captured once, replayed at the cost of one launch.

Invariants: a graph reads its batch and the step's numbers from the same memory at every replay;
batches of another shape go another way: bags are taken where every batch has as many ids and the
tables lie in this process. The next batch is copied to the device while a step runs.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.kernels.step_scalars import StepScalars

WARMUP_STEPS = 2
"""Steps taken before capture: they compile kernels and let libraries allocate."""

Run = Callable[[Batch, Tensor, Tensor], Tensor]
"""A step on the device: batch, the dense and the sparse optimizer's numbers -> loss."""


class StepGraph:
    """Replays a step.

    Args:
        run: The step.
        num_samples: B, of the batches that the graph takes.
        takes_bags: Whether it takes bags.
    """

    def __init__(self, run: Run, num_samples: int, *, takes_bags: bool) -> None:
        self._run = run
        self._num_samples = num_samples
        self._takes_bags = takes_bags
        self._shapes: list[torch.Size] = []
        self._warmups = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def takes(self, batch: Batch) -> bool:
        """Whether a batch has the graph's shape.

        Args:
            batch: B samples of single ids in one buffer, or of bags with as many ids as the first.
        """
        if batch.num_samples != self._num_samples:
            return False
        if batch.buffer is None and not self._takes_bags:
            return False
        return not self._shapes or [part.shape for part in _parts(batch)] == self._shapes

    def __call__(self, batch: Batch, now: Sequence[StepScalars]) -> Tensor:
        """Take one step.

        Args:
            batch: `takes` it; page-locked, or on the device.
            now: The dense and the sparse optimizer's numbers.

        Returns:
            The loss, a scalar on the device.
        """
        if self._warmups == 0:
            self._allocate(batch)
        self._load(batch, now)
        if self._warmups < WARMUP_STEPS:
            self._warmups += 1
            return self._run(self._batch, *self._scalars)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: the loader's threads may page-lock memory meanwhile
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._loss = self._run(self._batch, *self._scalars)
        self._graph.replay()
        return self._loss.clone()

    def release(self) -> None:
        """Free the captured step; the next call captures it again."""
        torch.cuda.synchronize()
        self._graph = None

    def _allocate(self, batch: Batch) -> None:
        """The memory that the graph reads, and two batches' worth for those on their way."""
        self._copies = torch.cuda.Stream()
        self._shapes = [part.shape for part in _parts(batch)]
        self._batch = batch.empty_like("cuda")
        self._scalars = torch.empty(2, len(StepScalars._fields), device="cuda")
        self._staged = [[torch.empty_like(part) for part in _parts(self._batch)] for _ in range(2)]
        self._is_free = [torch.cuda.Event() for _ in self._staged]
        for is_free in self._is_free:  # once all that was asked of this memory before is done
            is_free.record()
        self._is_ready = torch.cuda.Event()

    def _load(self, batch: Batch, now: Sequence[StepScalars]) -> None:
        """Copy a batch and numbers to where the graph reads them, while the last step runs."""
        parts = _parts(batch)
        is_here = all(part.is_cuda for part in parts)
        for part, source in zip(
            _parts(self._batch), parts if is_here else self._stage(parts), strict=True
        ):
            part.copy_(source)
        if not is_here:
            self._is_free[-1].record()
        numbers = torch.tensor(now, dtype=torch.float32, pin_memory=True)
        self._scalars.copy_(numbers, non_blocking=True)

    def _stage(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Copy a batch to the device on a stream of its own; the current one waits for it."""
        self._staged.append(self._staged.pop(0))
        self._is_free.append(self._is_free.pop(0))
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._is_free[-1])
            for staged, part in zip(self._staged[-1], parts, strict=True):
                staged.copy_(part, non_blocking=True)
            self._is_ready.record()
        torch.cuda.current_stream().wait_event(self._is_ready)
        return self._staged[-1]


def _parts(batch: Batch) -> list[Tensor]:
    """All tensors of a batch: one where they lie in a buffer."""
    if batch.buffer is not None:
        return [batch.buffer]
    sparse = batch.sparse
    found = (batch.dense, batch.labels, sparse.ids, sparse.lengths, sparse.weights)
    return [part for part in found if part is not None]
