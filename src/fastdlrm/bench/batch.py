"""Latency and throughput of inference against batch size.

Shapes: B batch.
"""

from collections.abc import Callable, Sequence

import torch

from fastdlrm.batch import Batch
from fastdlrm.bench.measure import measure
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.result import measurement, result_of, start
from fastdlrm.contracts.bench_result import BenchResult, Effort
from fastdlrm.model.predictor import Predictor

BATCH_SIZES = (1, 4, 16, 64, 256, 1024)


def bench_batch(model: BenchModel, batch_sizes: Sequence[int], effort: Effort) -> BenchResult:
    """Measure a model's forward pass, inputs on the device already.

    Args:
        model: What is measured.
        batch_sizes: B, each at least 1.
        effort: How long.

    Raises:
        ConfigError: The tables do not fit.
    """
    started, matmul = start(), model.settle_products()
    predictor = Predictor(model.build().eval(), model.dtype)
    calls = [forward(predictor, model.batches(size)) for size in batch_sizes]
    timed = measure(calls, model.device, effort)
    return result_of(
        "batch",
        model,
        started=started,
        matmul=matmul,
        effort=effort,
        settings={"batch_sizes": list(batch_sizes)},
        measurements=[
            measurement({"batch_size": str(size)}, found, num_rows=size)
            for size, found in zip(batch_sizes, timed, strict=True)
        ],
    )


def forward(predictor: Predictor, batches: Sequence[Batch]) -> Callable[[int], torch.Tensor]:
    """Probabilities of the k-th batch, around and around."""

    @torch.inference_mode()
    def call(k: int) -> torch.Tensor:
        batch = batches[k % len(batches)]
        return torch.sigmoid(predictor(batch.dense, batch.sparse))

    return call
