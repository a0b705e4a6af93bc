"""Training fed from disk against training on batches that lie on the device already.

The dataset and the model are of Criteo-Terabyte's shape; whole epochs through the project's own
loader and train step, page cache warm, the order of an epoch drawn anew each time. The in-memory
rate is of the same step in the same run.

Usage: python benchmarks/bench_fed.py --device cuda --rows 16000000 --save
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from bench_loader import SEED, write_dataset
from results_file import write
from shapes import SHAPES, build_model, draw_batches, train_config

from fastdlrm.data.dataset import Dataset
from fastdlrm.data.loader import Loader, SequentialLoader
from fastdlrm.data.rows import Rows
from fastdlrm.train.step import TrainStep

SHAPE = {"cuda": "criteo-terabyte-10m", "cpu": "mlperf-100k"}
BATCHES = {"cuda": (8192, 32768), "cpu": (2048,)}
BLOCK_ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    args = parser.parse_args()
    device, shape = torch.device(args.device), SHAPES[SHAPE[args.device]]
    model = build_model(shape, device).train()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        write_dataset(folder, args.rows, most_rows=max(shape.rows))
        rows = Dataset.open(folder).split("train")
        for _ in SequentialLoader(rows, 8192):  # compiles, and maps every page
            pass
        samples: list[dict[str, float]] = [{} for _ in range(args.repeats)]
        for size in BATCHES[args.device]:
            config = train_config(size, args.precision)
            step = TrainStep(model, config)
            batches = draw_batches(shape, size, 8, device)
            for k in range(6):  # compiles, captures
                step(batches[k], k)
            for repeat, sample in enumerate(samples):
                num_steps = len(rows) // size
                resident = rate(step, (batches[k % 8] for k in range(num_steps)), device)
                fed = rate(step, epoch(rows, size, repeat, device), device)
                sample |= {f"in_memory_rows_per_s.{size}": resident, f"fed_rows_per_s.{size}": fed}
                sample[f"share.{size}"] = fed / resident
                print(sample, flush=True)
    result = {name: median(sample[name] for sample in samples) for name in samples[0]}
    if args.save:
        print(write(f"fed-{args.device}", vars(args), samples))
    print(json.dumps(result))


def epoch(rows: Rows, size: int, number: int, device: torch.device) -> Any:
    """The whole batches of an epoch, as training takes them."""
    is_gpu = device.type == "cuda"
    loader = Loader(rows, size, seed=SEED, block_rows=BLOCK_ROWS, pin=is_gpu)
    return (batch for batch in loader.epoch(number) if batch.num_samples == size)


def rate(step: TrainStep, batches: Any, device: torch.device) -> float:
    """Rows a second of training on some batches."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.synchronize(device)
    num_rows, start = 0, perf_counter_ns()
    for k, batch in enumerate(batches):
        step(batch, k)
        num_rows += batch.num_samples
    if is_gpu:
        torch.cuda.synchronize(device)
    return num_rows / (perf_counter_ns() - start) * 1e9


if __name__ == "__main__":
    main()
