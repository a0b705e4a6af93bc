"""Test AUC by precision: the same seeds trained in fp32, in bf16 and with bf16 tables.

Prints the mean difference to fp32, pairs of one seed, with its 95 % interval (Student's t).

Usage: python benchmarks/bench_precision.py criteo-sample 'DIR/day_*.gz'
       python benchmarks/bench_precision.py criteo-generated --generate 2000000
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from bench_accuracy import SEEDS, SHOWN, fastdlrm, prepared
from results_file import write

VARIANTS = {
    "fp32": (),
    "bf16": ("train.precision='bf16'",),
    "bf16_tables": ("train.precision='bf16'", "train.table_dtype='bf16'"),
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided 95 % interval of the mean, by number of pairs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--generate", type=int, default=0, help="rows of a generated log as input")
    parser.add_argument("--set", action="append", default=[], help="override for every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(folder), options.preset, options.inputs, options.generate)

        def sample(seed: int, variant: str) -> dict[str, Any]:
            run = str(Path(folder) / f"run-{seed}-{variant}")
            sets = [f"seed={seed}", *VARIANTS[variant], *options.set]
            changes = [flag for value in sets for flag in ("--set", value)]
            command = ("--config", options.preset, "--data", data, "--out", run)
            fastdlrm("train", *command, *changes)
            values = fastdlrm("eval", "--run", run, "--data", data, "--split", "test")
            return {"seed": seed, "variant": variant} | {k: values[k] for k in SHOWN}

        seeds, variants = zip(*product(SEEDS, VARIANTS), strict=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            samples = list(pool.map(sample, seeds, variants))
    result = {variant: difference(samples, variant) for variant in VARIANTS if variant != "fp32"}
    for variant, found in result.items():
        gap = f"{found['mean']:+.5f} +- {found['half']:.5f}"
        print(f"{options.preset}: AUC of {variant} - fp32: {gap}")
    config = {"preset": options.preset, "rows": options.generate, "set": options.set}
    print(write(f"precision-{options.preset}", config, samples, result))


def difference(samples: list[dict[str, Any]], variant: str) -> dict[str, float]:
    """Mean difference of AUC to fp32 over the seeds, and half the width of its interval."""
    aucs = {name: [s["auc"] for s in samples if s["variant"] == name] for name in VARIANTS}
    pairs = [a - b for a, b in zip(aucs[variant], aucs["fp32"], strict=True)]
    return interval(pairs)


def interval(values: list[float]) -> dict[str, float]:
    """A mean and half the width of its 95 % interval."""
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": statistics.mean(values), "half": half}


if __name__ == "__main__":
    main()
