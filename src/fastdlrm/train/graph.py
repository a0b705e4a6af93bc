"""Whole train steps as one CUDA graph: captured once, replayed at the cost of one launch.

Invariants: a graph reads its batch and the step's numbers from the same memory at every replay;
batches of another shape, and bags, whose sizes vary, go another way. The next batch is copied to
the device while a step runs.
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
    """

    def __init__(self, run: Run, num_samples: int) -> None:
        self._run = run
        self._num_samples = num_samples
        self._warmups = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._copies = torch.cuda.Stream()

    def takes(self, batch: Batch) -> bool:
        """Whether a batch has the graph's shape: B samples of single ids, in one buffer."""
        return batch.buffer is not None and batch.num_samples == self._num_samples

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
        num_dense, num_sparse = batch.dense.shape[1], batch.sparse.num_features
        self._batch = Batch.allocate(self._num_samples, num_dense, num_sparse, device="cuda")
        self._scalars = torch.empty(2, len(StepScalars._fields), device="cuda")
        assert self._batch.buffer is not None
        self._staged = [torch.empty_like(self._batch.buffer) for _ in range(2)]
        self._is_free = [torch.cuda.Event() for _ in self._staged]
        for is_free in self._is_free:  # once all that was asked of this memory before is done
            is_free.record()
        self._is_ready = torch.cuda.Event()

    def _load(self, batch: Batch, now: Sequence[StepScalars]) -> None:
        """Copy a batch and numbers to where the graph reads them, while the last step runs."""
        assert batch.buffer is not None
        assert self._batch.buffer is not None
        source = batch.buffer if batch.buffer.is_cuda else self._stage(batch.buffer)
        self._batch.buffer.copy_(source)
        if source is not batch.buffer:
            self._is_free[-1].record()
        numbers = torch.tensor(now, dtype=torch.float32, pin_memory=True)
        self._scalars.copy_(numbers, non_blocking=True)

    def _stage(self, buffer: Tensor) -> Tensor:
        """Copy a buffer to the device on a stream of its own; the current one waits for it."""
        self._staged.append(self._staged.pop(0))
        self._is_free.append(self._is_free.pop(0))
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._is_free[-1])
            self._staged[-1].copy_(buffer, non_blocking=True)
            self._is_ready.record()
        torch.cuda.current_stream().wait_event(self._is_ready)
        return self._staged[-1]
