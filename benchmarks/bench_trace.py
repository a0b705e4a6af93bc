"""Accesses a second of trace profile and generate, by the number of distinct ids.

A trace uses every id once, in random order, then as many at random, so that distances are as deep
as they can be. The profile's rate is over all its accesses, its tables' growth included; a
generator draws as many, its set-up counted apart.

Usage: python benchmarks/bench_trace.py
"""

import statistics
import time

import numpy as np
from numpy.typing import NDArray
from results_file import write

from fastdlrm.data.trace import Profiler, TraceGenerator

NUM_IDS = (10_000, 1_000_000, 10_000_000)
LEAST_ACCESSES = 2_000_000
SEEDS = (1, 2, 3)


def trace_of(num_ids: int, seed: int) -> NDArray[np.uint64]:
    draw = np.random.default_rng(seed)
    num_more = max(num_ids, LEAST_ACCESSES - num_ids)
    parts = [draw.permutation(num_ids), draw.integers(0, num_ids, num_more)]
    return np.concatenate(parts).astype(np.uint64)


def seconds_since(start: int) -> float:
    return (time.perf_counter_ns() - start) / 1e9


def sample(num_ids: int, seed: int) -> dict[str, float]:
    trace = trace_of(num_ids, seed)
    start = time.perf_counter_ns()
    profiler = Profiler()
    profiler.add(trace)
    profile = profiler.profile()
    profile_s = seconds_since(start)
    del profiler
    start = time.perf_counter_ns()
    generator = TraceGenerator(profile, seed)
    setup_s = seconds_since(start)
    start = time.perf_counter_ns()
    generator.draw(len(trace))
    generate_s = seconds_since(start)
    return {
        "seed": seed,
        f"profile_per_s.{num_ids}": len(trace) / profile_s,
        f"generate_per_s.{num_ids}": len(trace) / generate_s,
        f"setup_s.{num_ids}": setup_s,
    }


def main() -> None:
    sample(1000, 0)  # compiles; its time is not counted
    samples = []
    for seed in SEEDS:
        one: dict[str, float] = {}
        for num_ids in NUM_IDS:
            one |= sample(num_ids, seed)
            print(one)
        samples.append(one)
    for num_ids in NUM_IDS:
        rates = [
            statistics.median(s[f"{what}_per_s.{num_ids}"] for s in samples)
            for what in ("profile", "generate")
        ]
        print(f"{num_ids:,} ids: profile {rates[0]:,.0f}/s, generate {rates[1]:,.0f}/s (medians)")
    config = {"num_ids": list(NUM_IDS), "least_accesses": LEAST_ACCESSES, "rule": "deferred"}
    print(write("trace", config, samples))


if __name__ == "__main__":
    main()
