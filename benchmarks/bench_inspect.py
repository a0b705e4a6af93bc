"""Whole runs of `fastdlrm inspect` on a dataset of a generated log: rows a second, peak memory.

Usage: python benchmarks/bench_inspect.py [--rows 2000000] [--runs 3] [--log DIR]
The log is generated where DIR does not hold it yet. Only the default size writes a result file.
Peak memory counts the pages of the memory-mapped dataset that were read.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from bench_prepare import DEFAULT_MEMORY, DEFAULT_ROWS, NUM_FILES, PRESET, SEED, generate
from results_file import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--log", type=Path, help="folder of the log; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log, data = options.log or Path(folder) / "log", Path(folder) / "data"
        generate(log, options.rows)
        flags = ["--config", PRESET, "--input", f"{log}/*.gz", "--memory", DEFAULT_MEMORY]
        subprocess.run(["fastdlrm", "prepare", *flags, "--out", str(data)], check=True)
        samples = []
        for run in range(options.runs):
            samples.append(measure(data, Path(folder) / "page.html", options.rows))
            print(f"run {run}: {samples[-1]}")
    for name in ("rows_per_s", "peak_rss_bytes", "cpu_s"):
        print(f"median {name}: {statistics.median(s[name] for s in samples):,.0f}")
    if options.rows == DEFAULT_ROWS:
        config = {
            "preset": PRESET,
            "num_rows": options.rows,
            "num_files": NUM_FILES,
            "seed": SEED,
        }
        print(write("inspect", config, samples))


def measure(data: Path, page: Path, num_rows: int) -> dict[str, Any]:
    """One run, as a process of its own; the dataset is in the page cache."""
    command = ["fastdlrm", "inspect", str(data), "--html", str(page)]
    start = perf_counter_ns()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = (perf_counter_ns() - start) / 1e9
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"inspect ended with status {process.returncode}")
    return {
        "seconds": seconds,
        "rows_per_s": num_rows / seconds,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


if __name__ == "__main__":
    main()
