"""Test metrics on public data, five seeds each: prepare once, then train and eval a seed.

Usage: python benchmarks/bench_accuracy.py criteo-sample 'DIR/day_*.gz'
       python benchmarks/bench_accuracy.py adult DIR/adult.data.gz DIR/adult.test.gz
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results_file import write

SEEDS = (1, 2, 3, 4, 5)
SHOWN = ("auc", "log_loss", "ne", "calibration", "ece", "num_samples", "num_positives")


def fastdlrm(*arguments: str) -> Any:
    """Run a command of the command line; its JSON result."""
    command = [sys.executable, "-m", "fastdlrm", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def prepared(folder: Path, preset: str, inputs: list[str], num_generated: int = 0) -> str:
    """A dataset of the inputs, or of a log of so many rows that is generated first."""
    if num_generated:
        rows = ("--rows", str(num_generated), "--files", "4", "--seed", "7")
        fastdlrm("generate", *rows, "--out", str(folder / "log"))
        inputs = [f"{folder}/log/day_*"]
    flags = [flag for path in inputs for flag in ("--input", path)]
    fastdlrm("prepare", "--config", preset, *flags, "--out", str(folder / "data"))
    return str(folder / "data")


def main() -> None:
    preset, *inputs = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(folder), preset, inputs)
        samples = []
        for seed in SEEDS:
            run = str(Path(folder) / f"run-{seed}")
            seeded = ("--set", f"seed={seed}")
            trained = fastdlrm("train", "--config", preset, "--data", data, "--out", run, *seeded)
            values = fastdlrm("eval", "--run", run, "--data", data, "--split", "test")
            sample = {"seed": seed, "best_step": trained["best_step"]}
            samples.append(sample | {k: values[k] for k in SHOWN})
            print(samples[-1])
    for name in ("auc", "log_loss", "calibration"):
        values = [s[name] for s in samples]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        print(f"{preset}: {name} {mean:.4f} +- {spread:.4f}")
    inputs = [Path(path).name for path in inputs]
    print(write(f"accuracy-{preset}", {"preset": preset, "inputs": inputs}, samples))


if __name__ == "__main__":
    main()
