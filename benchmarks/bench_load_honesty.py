"""Whether the load generator's figures are true: real connections, the real clock, a known queue.

A server of planted service time (tests/stub_server.py) is a queue with one server. When each query
of a schedule is done there follows from the schedule alone, one query after the other, so that what
the generator reports is held against that and no draw of arrivals stands between them. M/D/1's
formula, for an endless run, is printed beside.

    python benchmarks/bench_load_honesty.py --save
    python benchmarks/bench_load_honesty.py --quick

Under four minutes; a quiet machine is needed, as a late query is a wrong figure.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from results_file import ROOT, write
from scipy.stats import kstest

from fastdlrm.load.loadgen import run_loadgen
from fastdlrm.load.plan import Plan, schedule_of
from fastdlrm.load.result import LoadResult
from fastdlrm.load.run import Crew, run
from fastdlrm.load.samples import OK, Samples
from fastdlrm.load.search import OVER_ALLOWED, qps_at_sla, search
from fastdlrm.load.summary import summarise
from fastdlrm.stats import fewest_trials

sys.path.insert(0, str(ROOT))
from tests.queueing import fifo_done, md1_latency, md1_rate
from tests.stub_server import answered_at, stub_server

LEVELS = ("p50", "p90", "p95", "p99")
STALL_S = 0.2
SERVICE_S, SLA_S, PERCENTILE = 0.004, 0.08, 95.0
"""Of the queue whose capacity is searched."""
TOLERANCE, MAX_PROBE_S = 0.02, 20.0
CHECKS = {"percentile": 0.02, "stall": 0.02, "loadgen": 0.05, "capacity": 0.03, "mean": 0.03}
"""Largest deviation, as a share, of each kind of figure."""
LEAST_P = 0.01
"""Of the test that gaps are exponential."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the time: does it work?")
    parser.add_argument("--save", action="store_true", help="write results/load-honesty.json")
    args = parser.parse_args()
    scale, seeds, began = (0.2, 2, time.monotonic()) if args.quick else (1.0, 5, time.monotonic())
    rows: list[Row] = []
    for step in (percentiles, stalls, loadgen):
        rows += step(scale)
        print(f"{time.monotonic() - began:6.1f} s  {step.__name__}", flush=True)
    offset_ms = next(row["measured"] for row in rows if row["kind"] == "offset")
    rows += capacity(scale, seeds, offset_ms / 1e3)
    print(f"{time.monotonic() - began:6.1f} s  capacity")
    failed = [row["what"] for row in rows if not row["holds"]]
    for row in rows:
        print(json.dumps(row))
    print("all hold" if not failed else f"do not hold: {', '.join(failed)}")
    if args.save:
        config = {"checks": CHECKS, "least_p": LEAST_P, "seeds": seeds, "scale": scale}
        print(write("load-honesty", config, rows, {"failed": failed}))


def row(kind: str, what: str, measured: float, expected: float, **more: Any) -> Row:
    """A figure, what it must be, and whether it is."""
    deviation = measured / expected - 1 if expected else 0.0
    holds = abs(deviation) <= CHECKS.get(kind, np.inf)
    return {
        "kind": kind,
        "what": what,
        "measured": measured,
        "expected": expected,
        "deviation": round(deviation, 5),
        "holds": bool(holds),
        **more,
    }


def plan_of(url: str, **changes: Any) -> Plan:
    fields = {"url": url, "model": "m", "sizes": "fixed:10", "sla_ms": 1e3 * SLA_S, "seed": 7}
    return Plan(**{**fields, "warmup_s": 1.0, **changes})


def exact(plan: Plan, times_s: NDArray[np.float64], done_s: NDArray[np.float64]) -> LoadResult:
    """What a generator without fault reports of a schedule whose queries are done then."""
    status, sizes = np.full(len(times_s), OK, np.int16), np.full(len(times_s), 10)
    return summarise(Samples(times_s, times_s, done_s, status, sizes), plan)


def percentiles(scale: float) -> list[Row]:
    """Half loaded queues of 10 and of 20 ms: percentiles, what the way there adds, and the gaps."""
    found: list[Row] = []
    for service_s in (0.01, 0.02):
        rate, name = 0.5 / service_s, f"{service_s * 1e3:g} ms of service"
        with stub_server(service_ms=1e3 * service_s) as url:
            plan = plan_of(url, rate=rate, duration_s=25 * scale)
            with Crew(plan) as crew:
                samples, generator = crew.measure(plan)
        ours = summarise(samples, plan, generator)
        done_s = fifo_done(samples.scheduled_s, service_s)
        expected = exact(plan, samples.scheduled_s, done_s)
        assert ours.latency_ms is not None
        assert expected.latency_ms is not None
        assert ours.lateness_ms is not None
        if not found:
            offset_ms = 1e3 * float(np.median(samples.done_s - done_s))
            found.append(row("offset", "ms from done to seen", offset_ms, 0.0))
        for level in LEVELS:
            what = f"{level} of {name}"
            formula = 1e3 * md1_latency(rate, service_s, float(level[1:]))
            measured, known = getattr(ours.latency_ms, level), getattr(expected.latency_ms, level)
            more = {"formula": formula, "lateness_p99_ms": ours.lateness_ms.p99}
            found.append(row("percentile", what, measured, known, **more))
        p = float(kstest(np.diff(samples.sent_s), "expon", (0, 1 / rate)).pvalue)
        found.append(row("gaps", f"KS test of the gaps sent, {name}", p, 1.0))
        found[-1]["holds"] = p >= LEAST_P
    return found


def stalls(_: float) -> list[Row]:
    """A server that stands still for 200 ms: all who arrive in it wait, the first one longest.

    It does so 4 s after its first query, by which the generator tries the server: it sends by then.
    """
    service_s = 0.01
    with stub_server(service_ms=10, stall_at_s=4.0, stall_ms=1e3 * STALL_S) as url:
        plan = plan_of(url, rate=50.0, duration_s=7.0)
        with Crew(plan) as crew:
            samples, generator = crew.measure(plan)
        answers = answered_at(url) - generator.start_at
    answers = answers[answers > plan.warmup_seconds]
    first = int(np.argmax(np.diff(answers))) + 1
    expected = exact(
        plan, samples.scheduled_s, stalled_done(samples.scheduled_s, service_s, answers[first])
    )
    ours = summarise(samples, plan, generator)
    assert ours.latency_ms is not None
    assert expected.latency_ms is not None
    found = []
    for level in ("p90", "p95", "p99", "max"):
        measured, known = (getattr(each.latency_ms, level) for each in (ours, expected))
        found.append(row("stall", f"{level} with a stall of 200 ms", measured, known))
    return found


def stalled_done(
    times_s: NDArray[np.float64], service_s: float, first_s: float
) -> NDArray[np.float64]:
    """When queries are done where the server stands still.

    Args:
        times_s: Of arrival.
        service_s: Of a query.
        first_s: When the first one was done after the stall.
    """
    end = first_s - service_s
    done, free_s = np.empty(len(times_s)), -np.inf
    for place, arrival in enumerate(times_s):
        begin = max(arrival, free_s)
        if begin < end and begin + service_s > end - STALL_S:
            begin = end
        done[place] = free_s = begin + service_s
    return done


def loadgen(scale: float) -> list[Row]:
    """MLPerf's LoadGen, then ours with the arrivals it had, against one queue."""
    with tempfile.TemporaryDirectory() as name, stub_server(service_ms=4) as url:
        folder = Path(name)
        plan = plan_of(url, rate=125.0, duration_s=20 * scale, sla_ms=500.0)
        theirs = dict(run_loadgen(plan, folder=folder).latency_ms)
        times = Samples.read(folder / "samples.arrow").scheduled_s
        trace = folder / "trace"
        trace.write_text("".join(f"{at!r}\n" for at in (times - times[0]).tolist()))
        again = {"rate": None, "arrivals": "trace", "trace": str(trace), "warmup_s": 0.0}
        ours = run(msgspec.structs.replace(plan, **again, duration_s=plan.duration_s + 60))
    assert ours.latency_ms is not None
    return [
        row("loadgen", f"{level} to LoadGen's", getattr(ours.latency_ms, level), theirs[known])
        for level, known in (("p50", 50.0), ("p95", 95.0), ("p99", 99.0))
    ]


def capacity(scale: float, num_seeds: int, offset_s: float) -> list[Row]:
    """Bisection on a queue, a seed each, at the same time; none takes a tenth of a core.

    A probe of some seconds shows a capacity to a few percent only, whoever measures. So a seed is
    held against the bisection of the same schedules without a server, and their mean against the
    formula.
    """
    known = md1_rate(SERVICE_S, SLA_S, PERCENTILE)
    duration_s = 12 * scale

    def both(seed: int) -> tuple[float, float]:
        with stub_server(service_ms=1e3 * SERVICE_S) as url:
            plan = plan_of(
                url,
                rate=0.8 * known,
                duration_s=duration_s,
                percentile=PERCENTILE,
                seed=10_000 * seed,
                confidence=0.5,  # no share of the rate for being sure: the capacity itself
                drain_s=1.0,
            )
            measured = search(plan, tolerance=TOLERANCE, max_probe_s=MAX_PROBE_S).qps_at_sla
        needed = fewest_trials(1 - PERCENTILE / 100, OVER_ALLOWED, plan.confidence)
        expected, _ = qps_at_sla(
            without_server(plan, needed, offset_s),
            start_rate=0.8 * known,
            seed=plan.seed,
            tolerance=TOLERANCE,
            least_rate=needed / MAX_PROBE_S,
        )
        return measured, expected

    with ThreadPoolExecutor(num_seeds) as pool:
        found = list(pool.map(both, range(num_seeds)))
    rows = [
        row("capacity", f"capacity, seed {seed}", measured, expected, formula=known)
        for seed, (measured, expected) in enumerate(found)
    ]
    mean = float(np.mean([measured for measured, _ in found]))
    return [*rows, row("mean", "mean capacity to the formula's", mean, known)]


def without_server(plan: Plan, needed: int, offset_s: float) -> Callable[[float, int], LoadResult]:
    """Probes as `search` makes them, of the queue by formula."""

    def probe(rate: float, seed: int) -> LoadResult:
        duration_s = max(plan.duration_s, needed / rate)
        own = msgspec.structs.replace(plan, rate=rate, seed=seed, duration_s=duration_s)
        times_s = schedule_of(own).times_s
        return exact(own, times_s, fifo_done(times_s, SERVICE_S) + offset_s)

    return probe


if __name__ == "__main__":
    main()
