"""Rows a second of `generate`: 2,000,000 rows in 4 gzipped files, three runs with three seeds.

Usage: python benchmarks/bench_generate.py
"""

import statistics
import tempfile
import time
from pathlib import Path

from results_file import write

from fastdlrm.data.generate import generate

NUM_ROWS = 2_000_000
NUM_FILES = 4
NUM_WORKERS = 2
SEEDS = (1, 2, 3)


def sample(seed: int) -> dict[str, float | None]:
    """Generate one log and throw it away."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter_ns()
        report = generate(
            Path(folder),
            num_rows=NUM_ROWS,
            num_files=NUM_FILES,
            gzip=True,
            seed=seed,
            num_workers=NUM_WORKERS,
        )
        seconds = (time.perf_counter_ns() - start) / 1e9
    return {
        "seed": seed,
        "seconds": seconds,
        "rows_per_s": NUM_ROWS / seconds,
        "size_bytes": sum(entry.size_bytes for entry in report.files.values()),
        "teacher_auc": report.auc,
        "teacher_log_loss": report.log_loss,
        "click_rate": report.click_rate,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:  # compiles; its time is not counted
        generate(Path(folder), num_rows=1000, num_files=1, gzip=True, seed=0)
    samples: list[dict[str, float | None]] = []
    for seed in SEEDS:
        samples.append(sample(seed))
        print(samples[-1])
    print(f"{statistics.median(s['rows_per_s'] for s in samples):,.0f} rows/s (median)")
    config = {"rows": NUM_ROWS, "files": NUM_FILES, "gzip": True, "workers": NUM_WORKERS}
    print(write("generate", config, samples))


if __name__ == "__main__":
    main()
