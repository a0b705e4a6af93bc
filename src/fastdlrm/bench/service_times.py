"""How long a worker computes for a part of a query, alone, and the rate that this bounds.

Shapes: B samples of a part.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fastdlrm.batch import Batch
from fastdlrm.bench.measure import measure
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.result import measurement
from fastdlrm.contracts.bench_result import Effort, Measurement
from fastdlrm.contracts.signature import DENSE, IDS, LENGTHS
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.export.model import ExportedModel
from fastdlrm.export.request_encoder import RequestEncoder
from fastdlrm.load.sizes import Sizes

EFFORT = Effort(warmup_s=0.1, seconds=0.5, spread=0.03, min_samples=20, num_rounds=3)
NUM_BATCHES = 4

Inputs = dict[str, WireTensor]


def service_times(
    model: BenchModel,
    folder: Path,
    batch_sizes: Sequence[int],
    effort: Effort = EFFORT,
    device: str = "cpu",
) -> dict[int, Measurement]:
    """Time the exported model on one thread, from a request's inputs to scores, as a worker does.

    Args:
        model: Whose rows are drawn.
        folder: The model, exported.
        batch_sizes: B.
        effort: How long.
        device: Where it computes.

    Returns:
        By B.
    """
    exported = ExportedModel.load(folder, device=device, check=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = [
            partial(_score, exported, B, [inputs_of(x) for x in model.batches(B, NUM_BATCHES)])
            for B in batch_sizes
        ]
        timed = measure(calls, torch.device(device), effort)
    finally:
        torch.set_num_threads(threads)
    return {
        B: measurement(
            {"measured": "service time", "device": device, "B": str(B)}, found, num_rows=B
        )
        for B, found in zip(batch_sizes, timed, strict=True)
    }


def medians(service: Mapping[int, Measurement]) -> dict[int, float]:
    """Milliseconds by B."""
    return {rows: found.summary.median for rows, found in service.items()}


def ceiling_qps(
    service_ms: Mapping[int, float], sizes: Sizes, max_rows: int, num_workers: int
) -> float:
    """Queries a second if workers did nothing but compute, and never waited.

    Args:
        service_ms: Of a part, by its samples; linear in between.
        sizes: Of queries, shape (Q,).
        max_rows: Of a part: a query is cut into the fewest equal ones.
        num_workers: Workers.
    """
    num_parts = np.ceil(sizes / max_rows)
    known = sorted(service_ms)
    part_ms = np.interp(sizes / num_parts, known, [service_ms[rows] for rows in known])
    return float(num_workers * 1e3 / (num_parts * part_ms).mean())


def inputs_of(batch: Batch) -> Inputs:
    """A batch as the encoded inputs of a request."""
    sparse = batch.sparse
    F, num_rows = sparse.num_features, batch.num_samples
    inputs = {DENSE: WireTensor.from_array(batch.dense.numpy())} if batch.dense.shape[1] else {}
    ids = sparse.ids.numpy()
    if sparse.lengths is None:
        return {**inputs, IDS: WireTensor.from_array(ids.reshape(F, num_rows).T)}
    lengths = WireTensor.from_array(sparse.lengths.numpy().reshape(F, num_rows))
    return {**inputs, IDS: WireTensor.from_array(ids), LENGTHS: lengths}


def _score(exported: ExportedModel, num_rows: int, inputs: Sequence[Inputs], k: int) -> object:
    encoded = exported.encoder.encode(inputs[k % len(inputs)], 0, num_rows)
    return exported.predict(RequestEncoder.join([encoded]))
