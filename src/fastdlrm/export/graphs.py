"""A forward pass on a GPU as CUDA graphs, one for each of a few batch sizes.

Launching a forward pass operator by operator takes longer than a GPU needs for it; a graph is one
launch. A batch is padded to the next size that has one, and one copy moves it to the GPU.

Shapes: B batch, b rows of a graph, N dense features, F sparse features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.model.predictor import Predictor

SIZES = tuple(2**power for power in range(4, 14))
"""Rows of the graphs: 16 .. 8192; larger batches go in pieces."""

WARMUP_CALLS = 3


class _Graph(NamedTuple):
    """One size.

    Attributes:
        graph: Reads `there`, writes `logits`.
        here: In page-locked host memory.
        there: On the GPU.
        logits: On the GPU, shape (b,).
        answer: In page-locked host memory, shape (b,).
    """

    graph: torch.cuda.CUDAGraph
    here: Batch
    there: Batch
    logits: Tensor
    answer: Tensor


class GraphedPredictor:
    """Predicts batches of single ids; graphs are captured when first needed."""

    def __init__(
        self, predictor: Predictor, num_dense: int, num_sparse: int, device: torch.device
    ) -> None:
        """Nothing is captured yet.

        Args:
            predictor: Of a model on the GPU.
            num_dense: N.
            num_sparse: F, of one id each, without weights.
            device: The GPU.
        """
        self._predictor = predictor
        self._shape = num_dense, num_sparse
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _Graph] = {}

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """Predict.

        Args:
            batch: On the CPU; single ids.

        Returns:
            Logits, shape (B,), float32, on the CPU.
        """
        num_rows, most = batch.num_samples, SIZES[-1]
        if num_rows > most:
            pieces = [
                self(batch.slice(at, min(at + most, num_rows))) for at in range(0, num_rows, most)
            ]
            return torch.cat(pieces)
        size = next(size for size in SIZES if size >= num_rows)
        if size not in self._graphs:
            self._graphs[size] = self._captured(size)
        graph, here, there, logits, answer = self._graphs[size]
        F = self._shape[1]
        here.dense[:num_rows].copy_(batch.dense)
        here.sparse.ids.view(F, size)[:, :num_rows].copy_(batch.sparse.ids.view(F, num_rows))
        _buffer(there).copy_(_buffer(here), non_blocking=True)
        graph.replay()
        answer.copy_(logits, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return answer[:num_rows].clone()

    def _captured(self, size: int) -> _Graph:
        N, F = self._shape
        here = Batch.allocate(size, N, F, pin=True)
        _buffer(here).zero_()
        there = Batch.allocate(size, N, F, device=self._device)
        _buffer(there).copy_(_buffer(here))
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP_CALLS):
                self._predictor(there.dense, there.sparse)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._predictor(there.dense, there.sparse)
        answer = torch.empty(size, pin_memory=True)
        return _Graph(graph, here, there, logits, answer)


def _buffer(batch: Batch) -> Tensor:
    if batch.buffer is None:
        raise ValueError("a batch without a buffer cannot be copied at once")
    return batch.buffer
