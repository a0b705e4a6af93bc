"""How the time of a train step grows: with the batch, and with the rows of the tables.

The shape is criteo-terabyte-10m with its cap on rows varied; plotted to docs/images/growth.svg by
plot_growth.py.

Usage: python benchmarks/bench_growth.py --device cuda --save
"""

import argparse
import dataclasses
import json

import torch
from results_file import write
from shapes import SHAPES, TERABYTE_ROWS, build_model, draw_batches, train_config
from timing import System, interleave, medians

from fastdlrm.train.step import TrainStep

BATCHES = {"cuda": (2048, 4096, 8192, 16384, 32768, 65536), "cpu": (512, 1024, 2048, 4096)}
CAPS = {"cuda": (100_000, 1_000_000, 10_000_000), "cpu": (10_000, 100_000, 1_000_000)}
FIXED = {"cuda": (8192, 32768), "cpu": (2048,)}
"""Batches at which the rows vary."""
MAIN_CAP = {"cuda": 10_000_000, "cpu": 100_000}
"""Rows a table at which the batch varies."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing a point, about")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    args = parser.parse_args()
    device = torch.device(args.device)
    samples = []
    for cap in CAPS[args.device]:
        rows = tuple(min(count, cap) for count in TERABYTE_ROWS)
        shape = dataclasses.replace(SHAPES["criteo-terabyte-10m"], rows=rows)
        model = build_model(shape, device).train()
        sizes = BATCHES if cap == MAIN_CAP[args.device] else FIXED
        for size in sizes[args.device]:
            config = train_config(size, args.precision)
            step = TrainStep(model, config)
            batches = draw_batches(shape, size, 4, device)
            system = System("step", lambda k, s=step, b=batches: s(b[k % len(b)], k))
            ms = medians(interleave([system], device, args.seconds))["step_ms"]
            samples.append({"cap": cap, "rows": sum(rows), "batch": size, "ms": ms})
            print(samples[-1], flush=True)
            del step, batches, system
        del model
    if args.save:
        print(write(f"growth-{args.device}", vars(args), samples))
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
