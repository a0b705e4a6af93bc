"""MLPerf's LoadGen over the network: its Server and Offline scenarios against a server.

A LoadGen sample is one query here: as many rows as the plan's sizes say ("production" is that of
MLPerf's recommendation benchmark). LoadGen knows no failed query, so one counts as answered to it;
a run with any is not valid here, whatever LoadGen says.
"""

import multiprocessing
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.errors import ConfigError, LoadError
from fastdlrm.load.loadgen_process import Counts, LoadgenOrder, run_order
from fastdlrm.load.plan import Plan
from fastdlrm.load.requests import RequestFile, RequestMaker
from fastdlrm.load.rows import read_rows
from fastdlrm.load.sizes import query_sizes
from fastdlrm.load.target import address_of, read_metadata

SCENARIOS = {"server": "Server", "offline": "Offline"}
SUMMARY_FILE = "mlperf_log_summary.txt"
NUM_SAMPLES = 2048
"""Of LoadGen's library: distinct queries, from which it draws."""
OFFLINE_CONNECTIONS = 64
"""The whole offline query is there at once; so many of its samples are under way."""


class LoadgenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What LoadGen's summary says, and what became of the queries."""

    plan: Plan
    scenario: str
    is_valid: bool
    invalid: tuple[str, ...]
    planned_qps: float | None
    """Samples a second that LoadGen scheduled; None in Offline."""
    samples_per_s: float
    """Samples (queries of the server) a second completed."""
    num_queries: int
    num_failed: int
    """Queries without scores."""
    latency_ms: tuple[tuple[float, float], ...]
    """Percentile and latency from the scheduled time, ascending."""
    summary: str
    """LoadGen's own."""


def run_loadgen(
    plan: Plan, scenario: str = "server", *, folder: Path | None = None
) -> LoadgenResult:
    """Run LoadGen against a plan's server, in a process of its own.

    Args:
        plan: Its rate is `server_target_qps`, or `offline_expected_qps`; SLA, percentile, duration,
            sizes, rows and seed count too.
        scenario: "server" or "offline".
        folder: For LoadGen's logs and `samples.arrow`; None = they are not kept.

    Raises:
        ConfigError: LoadGen is not installed, the scenario is unknown, or the plan has no rate.
        ConfigError, DataError, LoadError: As `fastdlrm.load.run.run`.
    """
    if find_spec("mlperf_loadgen") is None:
        raise ConfigError("LoadGen is not installed; pip install 'fastdlrm[loadgen]'")
    if scenario not in SCENARIOS:
        raise ConfigError(f"LoadGen scenario {scenario!r}: {', '.join(SCENARIOS)} is allowed")
    if plan.rate is None or plan.arrivals != "exponential":
        raise ConfigError(
            f"LoadGen with rate {plan.rate} and arrivals {plan.arrivals!r}: it takes a rate, and "
            "draws exponential arrivals"
        )
    metadata = read_metadata(plan)
    maker = RequestMaker(plan, read_rows(plan, metadata), metadata)
    sizes = query_sizes(plan.sizes, NUM_SAMPLES, plan.seed)
    maker.check(int(sizes.max()))
    with tempfile.TemporaryDirectory() as temporary, RequestFile(maker) as requests:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        starts, stops = requests.places(sizes, plan.seed)
        limit = plan.max_connections
        counts = run_in_a_process(
            LoadgenOrder(
                address=address_of(plan.url),
                requests=requests.path,
                sizes=sizes,
                starts=starts,
                stops=stops,
                scenario=SCENARIOS[scenario],
                folder=str(place),
                settings=_settings(plan, scenario),
                max_connections=limit if scenario == "server" else min(limit, OFFLINE_CONNECTIONS),
            )
        )
        return read_summary((place / SUMMARY_FILE).read_text(), plan, counts)


def read_summary(text: str, plan: Plan, counts: Counts) -> LoadgenResult:
    """Read LoadGen's `mlperf_log_summary.txt`.

    Args:
        text: Of the file.
        plan: Of the run.
        counts: Queries, and those without scores.

    Raises:
        LoadError: It holds no result.
    """
    scenario = _field(text, "Scenario")
    result = _field(text, "Result is")
    if scenario is None or result is None:
        raise LoadError(f"LoadGen's summary holds no result: {text[:200]!r}")
    rate = next(
        (
            found
            for name in ("Completed samples per second", "Samples per second")
            if (found := _field(text, name)) is not None
        ),
        "0",
    )
    planned = _field(text, "Scheduled samples per second")
    percentiles = re.findall(r"^([0-9.]+) percentile latency \(ns\) *: *(\d+)", text, re.MULTILINE)
    invalid = [] if result == "VALID" else [f"LoadGen says {result}", *_reasons(text)]
    if counts.num_failed:
        invalid.append(f"{counts.num_failed} queries got no scores, which LoadGen does not know")
    return LoadgenResult(
        plan=plan,
        scenario=scenario,
        is_valid=not invalid,
        invalid=tuple(invalid),
        planned_qps=None if planned is None else float(planned),
        samples_per_s=float(rate),
        num_queries=counts.num_queries,
        num_failed=counts.num_failed,
        latency_ms=tuple((float(level), int(ns) / 1e6) for level, ns in percentiles),
        summary=text,
    )


def _settings(plan: Plan, scenario: str) -> dict[str, Any]:
    """Set by hand: LoadGen reads its built-in configuration only once a process."""
    assert plan.rate is not None
    settings: dict[str, Any] = {
        "min_duration_ms": round(plan.duration_s * 1000),
        "qsl_rng_seed": plan.seed + 1,
        "sample_index_rng_seed": plan.seed + 2,
        "schedule_rng_seed": plan.seed + 3,
        "performance_sample_count_override": NUM_SAMPLES,
    }
    if scenario == "offline":
        return {**settings, "offline_expected_qps": plan.rate}
    settings["server_target_qps"] = plan.rate
    settings["server_target_latency_percentile"] = plan.percentile / 100
    if plan.sla_ms is not None:
        settings["server_target_latency_ns"] = round(plan.sla_ms * 1e6)
    return settings


def run_in_a_process(order: LoadgenOrder) -> Counts:
    """Carry out an order in a new process.

    Raises:
        LoadError: The server cannot be reached, or the process ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_order, args=(theirs,), name="loadgen", daemon=True)
    process.start()
    theirs.close()
    try:
        ours.send(order)
        found = ours.recv()
    except (EOFError, BrokenPipeError):
        process.join(timeout=5)
        raise LoadError(
            f"LoadGen's process ended (exit code {process.exitcode}); its own message is above"
        ) from None
    finally:
        ours.close()
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()
    if isinstance(found, OSError):
        raise LoadError(f"{order.address.host}:{order.address.port}: no connection ({found})")
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, Counts)
    return found


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^ *{re.escape(name)} *: *(.+?) *$", text, re.MULTILINE)
    return None if found is None else found[1]


def _reasons(text: str) -> list[str]:
    """What LoadGen says was not satisfied, and what it recommends."""
    lines = [line.strip() for line in text.splitlines()]
    return [
        line.removeprefix("* ")
        for line in lines
        if line.startswith("* ") or line.endswith(": NO") or "would need to run" in line
    ]
