"""Whole runs of `fastdlrm prepare` on a generated Criteo-shaped log: rows a second, peak memory.

Usage: python benchmarks/bench_prepare.py [--rows 2000000] [--memory 1GiB] [--runs 3] [--log DIR]
The log is generated where DIR does not hold it yet. Only the default sizes write a result file.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from results_file import write

DEFAULT_ROWS, DEFAULT_MEMORY = 2_000_000, "1GiB"
PRESET, NUM_FILES, SEED = "criteo-generated", 4, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS)
    parser.add_argument("--memory", default=DEFAULT_MEMORY)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--log", type=Path, help="folder of the log; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "log"
        generate(log, options.rows)
        samples = []
        for run in range(options.runs):
            samples.append(measure(log, Path(folder) / "data", options.rows, options.memory))
            print(f"run {run}: {samples[-1]}")
    for name in ("rows_per_s", "peak_rss_bytes", "cpu_s"):
        print(f"median {name}: {statistics.median(s[name] for s in samples):,.0f}")
    if (options.rows, options.memory) == (DEFAULT_ROWS, DEFAULT_MEMORY):
        config = {
            "preset": PRESET,
            "num_rows": options.rows,
            "num_files": NUM_FILES,
            "seed": SEED,
            "gzip": True,
            "memory": options.memory,
        }
        print(write("prepare", config, samples))


def generate(log: Path, num_rows: int) -> None:
    """Make the log unless it is there."""
    if log.is_dir():
        return
    flags = ["--rows", str(num_rows), "--files", str(NUM_FILES), "--seed", str(SEED), "--gzip"]
    subprocess.run(["fastdlrm", "generate", *flags, "--out", str(log)], check=True)


def measure(log: Path, out: Path, num_rows: int, memory: str) -> dict[str, Any]:
    """One run, as a process of its own; its files are in the page cache from the second run on."""
    flags = ["--config", PRESET, "--input", f"{log}/*.gz", "--out", str(out), "--memory", memory]
    start = perf_counter_ns()
    process = subprocess.Popen(["fastdlrm", "prepare", *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = (perf_counter_ns() - start) / 1e9
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"prepare ended with status {process.returncode}")
    shutil.rmtree(out)
    return {
        "seconds": seconds,
        "rows_per_s": num_rows / seconds,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


if __name__ == "__main__":
    main()
