"""`fastdlrm prepare` on growing logs: rows a second, peak memory of all its processes, peak disk.

Usage: python benchmarks/bench_prepare_scale.py [--rows 2e6 5e6 10e6 20e6] [--memory 4GiB]
           [--workers 2] [--ray local] [--folder DIR]
       python benchmarks/bench_prepare_scale.py --kill 5 [--rows 2e6] ...
With --kill the first log is prepared once undisturbed, then killed (-9, all processes) at random
moments and started again until it is done; every file must hold the same bytes. Logs are generated
where DIR does not hold them yet. Only the default settings write a result file.
"""

import argparse
import contextlib
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from results_file import write

DEFAULTS = {"rows": [2e6, 5e6, 10e6, 20e6], "memory": "4GiB", "workers": 2, "ray": ""}
KILLED_ROWS = [20e6]
PRESET, NUM_FILES, SEED = "criteo-generated", 8, 7
FASTDLRM = [sys.executable, "-m", "fastdlrm"]
SAMPLE_S = 0.05
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, nargs="+")
    parser.add_argument("--memory", default=DEFAULTS["memory"])
    parser.add_argument("--workers", type=int, default=DEFAULTS["workers"])
    parser.add_argument("--ray", default=DEFAULTS["ray"])
    parser.add_argument("--folder", type=Path, help="of logs; by default a temporary one")
    parser.add_argument("--kill", type=int, default=0, help="how often to kill")
    options = parser.parse_args()
    default_rows = KILLED_ROWS if options.kill else DEFAULTS["rows"]
    options.rows = options.rows or default_rows
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.kill:
            samples, result = measure_kills(options, Path(name))
        else:
            samples, result = measure_growth(options, Path(name))
    settings = {k: getattr(options, k) for k in ("memory", "workers", "ray", "rows")}
    if settings == {**DEFAULTS, "rows": default_rows} and options.kill in (0, 5):
        config = {"preset": PRESET, "num_files": NUM_FILES, "seed": SEED, "gzip": True, **settings}
        print(write("prepare-kills" if options.kill else "prepare-scale", config, samples, result))


def measure_growth(
    options: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One whole run a size; the log is in the page cache as far as memory has room."""
    samples = []
    for rows in options.rows:
        log = generate(options.folder or folder, int(rows))
        run = Run(options, log, folder / "data")
        run.wait()
        samples.append({"num_rows": int(rows), **run.figures(), "rows_per_s": rows / run.seconds})
        print(samples[-1], flush=True)
        shutil.rmtree(folder / "data")
    per_row = [s["seconds"] / s["num_rows"] for s in samples]
    print(f"seconds a row, most over least: {max(per_row) / min(per_row):.2f}")
    return samples, {"most_over_least_seconds_a_row": max(per_row) / min(per_row)}


def measure_kills(
    options: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Kills at random moments; the moments of a run are spread so that later ones get further."""
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    log = generate(options.folder or folder, int(options.rows[0]))
    whole = Run(options, log, folder / "whole")
    whole.wait()
    samples = []
    for kill in range(options.kill):
        delay_s = draw.uniform(0.02, 1.6 * whole.seconds / options.kill)
        run = Run(options, log, folder / "killed")
        was_killed = run.kill_after(delay_s)
        samples.append({"kill": kill, "delay_s": delay_s, "was_killed": was_killed})
        print(samples[-1], flush=True)
        if not was_killed:
            break
    last = Run(options, log, folder / "killed") if samples[-1]["was_killed"] else None
    if last:
        last.wait()
    names = sorted(str(p.relative_to(folder / "whole")) for p in files(folder / "whole"))
    same, differ, missing = filecmp.cmpfiles(
        folder / "whole", folder / "killed", names, shallow=False
    )
    left = [path.name for path in folder.glob(".*.prepare")]
    result = {
        "seed": seed,
        "whole_s": whole.seconds,
        "last_s": last.seconds if last else 0.0,
        "num_kills": sum(s["was_killed"] for s in samples),
        "num_files": len(same),
        "is_same": not differ and not missing and len(list(files(folder / "killed"))) == len(names),
        "left_over": left,
    }
    print(result)
    if not result["is_same"] or left:
        sys.exit(f"differ: {differ}, missing: {missing}, left over: {left}")
    return samples, result


def generate(folder: Path, num_rows: int) -> Path:
    """Make a log unless it is there."""
    log = folder / f"log-{num_rows}"
    if not log.is_dir():
        flags = ["--rows", str(num_rows), "--files", str(NUM_FILES), "--seed", str(SEED), "--gzip"]
        subprocess.run([*FASTDLRM, "generate", *flags, "--out", str(log)], check=True)
    return log


class Run:
    """A `prepare` as a process group of its own."""

    def __init__(self, options: argparse.Namespace, log: Path, out: Path) -> None:
        flags = ["--config", PRESET, "--input", f"{log}/*.gz", "--out", str(out)]
        flags += ["--memory", options.memory, "--workers", str(options.workers)]
        flags += ["--ray", options.ray] if options.ray else []
        self.out = out
        self.peak_rss_bytes, self.peak_disk_bytes, self.seconds, self.cpu_s = 0, 0, 0.0, 0.0
        self.start = perf_counter_ns()
        self.process = subprocess.Popen(
            [*FASTDLRM, "prepare", *flags], stdout=subprocess.DEVNULL, start_new_session=True
        )

    def wait(self) -> None:
        """Until it is done, watching memory and disk."""
        next_disk = 0.0
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            resident = sum(map(rss_bytes, tree(self.process.pid)))
            self.peak_rss_bytes = max(self.peak_rss_bytes, resident)
            if time.monotonic() > next_disk:
                self.peak_disk_bytes = max(self.peak_disk_bytes, self.disk_bytes())
                next_disk = time.monotonic() + 10 * SAMPLE_S
            time.sleep(SAMPLE_S)
        self.seconds = (perf_counter_ns() - self.start) / 1e9
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            sys.exit(f"prepare ended with status {self.process.returncode}")

    def kill_after(self, delay_s: float) -> bool:
        """Kill all its processes; false if it was done before."""
        try:
            self.process.wait(delay_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def disk_bytes(self) -> int:
        """Of its work folder, now."""
        return sum(map(size_bytes, files(self.out.parent / f".{self.out.name}.prepare")))

    def figures(self) -> dict[str, float]:
        """What was measured."""
        names = ("seconds", "peak_rss_bytes", "peak_disk_bytes", "cpu_s")
        return {name: getattr(self, name) for name in names}


def files(folder: Path) -> Iterator[Path]:
    """All files of a folder that may be changing."""
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def size_bytes(path: Path) -> int:
    """Size of a file; 0 if it has just gone."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; what several share counts in each."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    return 0


if __name__ == "__main__":
    main()
