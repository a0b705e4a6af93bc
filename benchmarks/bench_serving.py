"""A server's latency and capacity: ways of computing, peers, overload, a swap.

Every query has 100 candidates of the dim-16 Criteo shape as raw columns, and queries arrive as a
Poisson process (open loop). Capacity is the highest rate at which 99 % of the queries are answered
within the SLA, shown with 99 % confidence. Generator and server share the machine's cores; run as
root, the generator takes real-time priority, as if it were on another machine.

    python benchmarks/bench_serving.py variants RUN DATA WORK --save
    python benchmarks/bench_serving.py peers RUN DATA WORK --save
    python benchmarks/bench_serving.py overload RUN DATA WORK --save
    python benchmarks/bench_serving.py swap RUN DATA WORK --save

RUN is a run of the preset criteo-generated with bottom_mlp [512, 256, 64, 16] and top_mlp [512,
256], DATA its dataset, WORK a folder for exported models.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from results_file import write
from served import Served, fastapi, mlserver, ours

from fastdlrm.contracts.latency_bounded import Probe
from fastdlrm.load.plan import Plan
from fastdlrm.load.run import run
from fastdlrm.load.search import search

PORT = 8100
CANDIDATES = 100
NETWORK_MS = 3.0
"""Of a deadline, for the way to the server and back; the server counts from arrival."""
VARIANTS = (
    ("fp32", "fp32", "eager"),
    ("bf16", "bf16", "eager"),
    ("int8", "int8", "eager"),
    ("int8", "fp32", "eager"),
    ("fp32", "fp32", "onnx"),
    ("int8", "fp32", "onnx"),
    ("fp32", "fp32", "aoti"),
)
"""Tables, MLPs, program."""


def main() -> None:
    args = arguments()
    result = {"variants": variants, "peers": peers, "overload": overload, "swap": swap}[args.what](
        args
    )
    print(json.dumps(result, indent=2))
    if args.save:
        config = {
            "what": args.what,
            "candidates": CANDIDATES,
            "sla_ms": args.sla_ms,
            "seconds": args.seconds,
            "workers": args.workers,
        }
        write(f"serving-{args.what}", config, result.pop("samples"), result)


def variants(args: argparse.Namespace) -> dict[str, Any]:
    """Capacity, and latency at half of it, of each way of computing."""
    samples = []
    for tables, mlp, program in VARIANTS:
        model = exported(args, tables, mlp, program)
        quality = json.loads((model / "manifest.json").read_text())["quality"][-1]
        with ours(model, "ctr", PORT, *workers(args)) as served:
            found = capacity_and_half(served, args, body="binary")
        row = {"tables": tables, "mlp": mlp, "program": program, "auc": quality["auc"], **found}
        print(json.dumps(row), file=sys.stderr)
        samples.append(row)
    best = max(samples, key=lambda row: row["capacity_qps"])
    return {"best": {k: best[k] for k in ("tables", "mlp", "program")}, "samples": samples}


def peers(args: argparse.Namespace) -> dict[str, Any]:
    """Capacity of other servers of the same model beside ours, by the same generator."""
    model = exported(args, *args.variant.split(","))
    samples = []
    for name, body, server in (
        ("fastapi", "json", lambda: fastapi(args.run, PORT)),
        ("fastapi, 1 thread", "json", lambda: fastapi(args.run, PORT, threads=1)),
        ("mlserver", "json", lambda: mlserver(args.run, args.work / "mlserver", PORT, 2)),
        ("fastdlrm", "json", lambda: ours(model, "ctr", PORT, *workers(args))),
        ("fastdlrm", "binary", lambda: ours(model, "ctr", PORT, *workers(args))),
    ):
        if name == "mlserver" and args.no_mlserver:
            continue
        with server() as served:
            found = climbed(served, args, body=body, rows=str(model / "warmup.arrow"))
        samples.append({"server": name, "body": body, **found})
        print(json.dumps(samples[-1]), file=sys.stderr)
    plain = max(s["capacity_qps"] for s in samples if s["server"] != "fastdlrm")
    ratios = {s["body"]: s["capacity_qps"] / plain for s in samples if s["server"] == "fastdlrm"}
    return {"ratio_to_best_peer": ratios, "samples": samples}


def climbed(served: Served, args: argparse.Namespace, **plan: Any) -> dict[str, Any]:
    """The last rate of a ladder, each a quarter above the one before, whose p99 is within the SLA.

    A search with the confidence of `variants` takes minutes at the rates that peers reach.
    """
    rungs: list[dict[str, Any]] = []
    rate = args.start_qps / (1 if plan["body"] == "binary" else 4 if served.is_ours else 25)
    while True:
        found = run(
            Plan(
                **common(served, args, **plan),
                rate=rate,
                duration_s=min(max(args.probe_seconds, 300 / rate), 15.0),
                sla_ms=args.sla_ms,
            )
        )
        latency = found.latency_ms
        rungs.append({"rate": rate, "latency_ms": plain(latency), "generator": generator(found)})
        is_kept = not found.failures and latency is not None and latency.p99 <= args.sla_ms
        if not is_kept or not found.is_valid:
            break
        rate *= 1.25
    kept = rungs[-2] if len(rungs) > 1 else None
    return {
        "capacity_qps": kept["rate"] if kept else 0.0,
        "p50_ms": kept["latency_ms"]["p50"] if kept else None,
        "p99_ms": kept["latency_ms"]["p99"] if kept else None,
        "rungs": rungs,
    }


def overload(args: argparse.Namespace) -> dict[str, Any]:
    """Twice the capacity for a minute: what is answered, how late, and what is refused."""
    model = exported(args, *args.variant.split(","))
    with ours(model, "ctr", PORT, *workers(args)) as served:
        capacity = capacity_of(served, args, body="binary")
        before = served.memory_mib()
        plan = Plan(
            **common(served, args),
            rate=2 * capacity["capacity_qps"],
            duration_s=args.overload_seconds,
            timeout_ms=args.sla_ms - NETWORK_MS,
            sla_ms=args.sla_ms,
            max_connections=4096,
        )
        memory: list[float] = []
        with sampled(lambda: memory.append(served.memory_mib()), every_s=2.0):
            found = run(plan)
        after = served.memory_mib()
    return {
        "capacity_qps": capacity["capacity_qps"],
        "offered_qps": plan.rate,
        "goodput_qps": found.answered_qps,
        "goodput_share_of_capacity": found.answered_qps / capacity["capacity_qps"],
        "latency_ms": plain(found.latency_ms),
        "failures": found.failures,
        "num_unfinished": found.num_unfinished,
        "memory_mib": {"before": before, "largest": max(memory), "after": after},
        "generator": generator(found),
        "seconds": [plain(second) for second in found.seconds],
        "samples": [counts(second) for second in found.seconds],
    }


def swap(args: argparse.Namespace) -> dict[str, Any]:
    """Versions swapped under half of the capacity, against the same load without a swap."""
    model = exported(args, *args.variant.split(","))
    repository = args.work / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    for version in ("1", "2"):
        shutil.copytree(model, repository / "ctr" / version)
    (repository / "ctr" / "current").write_text("1\n")
    with ours(repository, "ctr", PORT, *workers(args)) as served:
        capacity = capacity_of(served, args, body="binary")
        rate = capacity["capacity_qps"] / 2
        plan = Plan(**common(served, args), rate=rate, duration_s=30.0, sla_ms=args.sla_ms)
        quiet = run(plan)
        events: list[dict[str, Any]] = []

        def swaps() -> None:
            time.sleep(plan.warmup_seconds + 3)
            for version in ("2", "1", "2"):
                started = time.perf_counter()
                body = {"parameters": {"version": version}}
                served.post("/v2/repository/models/ctr/load", body)
                events.append({"to": version, "seconds": time.perf_counter() - started})
                time.sleep(4)

        thread = threading.Thread(target=swaps)
        thread.start()
        swapped = run(msgspec.structs.replace(plan, seed=1))
        thread.join()
    return {
        "rate_qps": rate,
        "without": {"latency_ms": plain(quiet.latency_ms), "failures": quiet.failures},
        "with_swaps": {
            "latency_ms": plain(swapped.latency_ms),
            "failures": swapped.failures,
            "num_unfinished": swapped.num_unfinished,
        },
        "p99_ratio": swapped.latency_ms.p99 / quiet.latency_ms.p99
        if swapped.latency_ms and quiet.latency_ms
        else None,
        "swaps": events,
        "generator": [generator(quiet), generator(swapped)],
        "seconds": [plain(second) for second in swapped.seconds],
        "samples": [counts(second) for second in swapped.seconds],
    }


def capacity_and_half(served: Served, args: argparse.Namespace, **plan: Any) -> dict[str, Any]:
    """Capacity, then latency at half of it."""
    found = capacity_of(served, args, **plan)
    if not found["capacity_qps"]:
        return found
    half = run(
        Plan(
            **common(served, args, **plan),
            rate=found["capacity_qps"] / 2,
            duration_s=args.seconds,
            sla_ms=args.sla_ms,
        )
    )
    at_half = {"latency_ms": plain(half.latency_ms), "generator": generator(half)}
    return {**found, "p50_ms": half.latency_ms.p50, "p99_ms": half.latency_ms.p99, "half": at_half}


def capacity_of(served: Served, args: argparse.Namespace, **plan: Any) -> dict[str, Any]:
    """The highest rate within the SLA."""

    def told(probe: Probe) -> None:
        print(f"  {probe.rate:8.1f} qps p99 {probe.p99_ms} {probe.why or 'ok'}", file=sys.stderr)

    found = search(
        Plan(
            **common(served, args, **plan),
            rate=args.start_qps / (1 if served.is_ours else 4),
            duration_s=args.probe_seconds,
            sla_ms=args.sla_ms,
        ),
        tolerance=args.tolerance,
        told=told,
    )
    return {"capacity_qps": found.qps_at_sla, "is_valid": found.is_valid, "why": found.invalid}


def common(served: Served, args: argparse.Namespace, **plan: Any) -> dict[str, Any]:
    """What all plans say."""
    return {
        "url": served.url,
        "model": served.model,
        "sizes": f"fixed:{CANDIDATES}",
        "warmup_s": 2.0,
        "max_lateness_ms": args.sla_ms / 10,
        **plan,
    }


def exported(args: argparse.Namespace, tables: str, mlp: str, program: str) -> Path:
    """The run, exported in a way; once."""
    folder: Path = args.work / f"{tables}-{mlp}-{program}"
    if not (folder / "manifest.json").is_file():
        command = [sys.executable, "-m", "fastdlrm", "export", "--run", str(args.run)]
        command += ["--data", str(args.data), "--out", str(folder), "--tables", tables]
        subprocess.run([*command, "--mlp", mlp, "--program", program], check=True)
    return folder


def workers(args: argparse.Namespace) -> list[str]:
    return ["--workers", str(args.workers)]


def counts(second: Any) -> dict[str, int]:
    """Queries of a second, and how many got scores; percentiles may be absent."""
    return {"at_s": second.at_s, "sent": second.num_queries, "answered": second.num_answered}


def generator(found: Any) -> dict[str, Any]:
    """Whether the generator kept up."""
    return {
        "is_valid": found.is_valid,
        "invalid": found.invalid,
        "planned_qps": found.planned_qps,
        "sent_qps": found.sent_qps,
        "lateness_ms": plain(found.lateness_ms),
        "cpu_share": found.cpu_share,
        "priority": found.priority,
    }


def plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


@contextmanager
def sampled(take: Any, every_s: float) -> Iterator[None]:
    """Call something now and then meanwhile."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(every_s):
            take()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("variants", "peers", "overload", "swap"))
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sla-ms", type=float, default=25.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="at half of the capacity")
    parser.add_argument("--probe-seconds", type=float, default=6.0)
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--start-qps", type=float, default=400.0, help="less for JSON")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--variant", default="fp32,fp32,eager")
    parser.add_argument("--no-mlserver", action="store_true")
    parser.add_argument("--save", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
