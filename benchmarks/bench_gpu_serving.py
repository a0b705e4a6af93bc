"""Milliseconds of one forward pass of an exported model on a GPU, from a host batch to host scores.

With CUDA graphs, as it serves, and operator by operator; random weights and ids.

Usage: python benchmarks/bench_gpu_serving.py --shape criteo-terabyte-10m --save
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from results_file import write
from shapes import SHAPES, build_model, draw_batches

from fastdlrm.batch import Batch
from fastdlrm.export.graphs import GraphedPredictor
from fastdlrm.model.predictor import Predictor

BATCHES = (16, 128, 1024, 8192)
NUM_INPUTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="criteo-terabyte-10m", choices=sorted(SHAPES))
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    device, shape = torch.device("cuda"), SHAPES[args.shape]
    predictor = Predictor(build_model(shape, device).eval(), torch.bfloat16)
    graphed = GraphedPredictor(predictor, shape.num_dense, len(shape.rows), device)

    def eager(batch: Batch) -> torch.Tensor:
        moved = batch.to(device)
        return predictor(moved.dense, moved.sparse).cpu()

    samples = []
    for size in BATCHES:
        inputs = [b.to("cpu") for b in draw_batches(shape, size, NUM_INPUTS, device)]
        for way, predict in (("graph", graphed), ("eager", eager)):
            times = timed(predict, inputs, args.calls)
            ms = statistics.median(times) * 1e3
            p99 = sorted(times)[int(0.99 * len(times))] * 1e3
            samples.append({"rows": size, "way": way, "ms": ms, "p99_ms": p99})
            print(f"{size:6} rows  {way:6} {ms:.3f} ms  p99 {p99:.3f} ms  {size / ms * 1e3:,.0f}/s")
    if args.save:
        config = {"shape": args.shape, "precision": "bf16", "calls": args.calls}
        write(f"gpu-serving-{args.shape}", config, samples)


def timed(predict: Callable[[Batch], torch.Tensor], inputs: list[Batch], calls: int) -> list[float]:
    """Seconds of each call; a call ends with the scores on the host."""
    for k in range(20):
        predict(inputs[k % len(inputs)])
    times = []
    for k in range(calls):
        started = time.perf_counter()
        predict(inputs[k % len(inputs)])
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
