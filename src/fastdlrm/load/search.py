"""The highest rate at which a server keeps its SLA: `qps_at_sla`.

Rates are bracketed, then bisected on a logarithmic scale. Each probe is a run with its own seed; it
passes only if the SLA is shown to be kept (MLPerf's early stopping), nothing was refused, answers
kept up with arrivals, and the queue did not grow.
"""

import math
from collections.abc import Callable
from statistics import median

import msgspec

from fastdlrm.contracts.latency_bounded import Probe
from fastdlrm.errors import ConfigError, LoadError
from fastdlrm.load.plan import Plan
from fastdlrm.load.result import LoadResult
from fastdlrm.load.run import Crew
from fastdlrm.load.sizes import mean_size
from fastdlrm.stats import fewest_trials

FIRST_SHARE = 0.25
"""Of the rate that a closed loop reaches, where the bracket starts."""
STEP = 1.5
MAX_STEPS = 20
"""Of the bracket, up or down: 3300 times the rate it starts with, or a part of it."""
MAX_PROBE_S = 600.0
TOLERANCE = 0.02
LEAST_ANSWERED_SHARE = 0.98
OVER_ALLOWED = 10
ATTEMPTS = 2
"""Of a probe in which the generator was late."""

RunProbe = Callable[[float, int], LoadResult]
"""Takes a rate and a seed."""


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found, and by which rule."""

    plan: Plan
    """Of the probes, but for seed and duration, at the rate that was found (1 where none was)."""
    loop: str
    qps_at_sla: float
    """Median of the repeats; 0 where no rate passed."""
    samples_per_s_at_sla: float
    """Times the mean size of a query."""
    sla_ms: float
    percentile: float
    confidence: float
    tolerance: float
    """The next rate that was tried and did not pass is within this share above."""
    repeats: tuple[float, ...]
    """What each repeat found."""
    is_valid: bool
    invalid: tuple[str, ...]
    probes: tuple[Probe, ...]


def search(
    plan: Plan,
    *,
    repeats: int = 1,
    tolerance: float = TOLERANCE,
    over_allowed: int = OVER_ALLOWED,
    max_probe_s: float = MAX_PROBE_S,
    told: Callable[[Probe], None] | None = None,
) -> SearchResult:
    """Search a server's highest rate within its SLA.

    Args:
        plan: Has an SLA; its rate is where the bracket starts, and without one a quarter of what a
            closed loop reaches is. Each probe lasts `duration_s` or longer, as the percentile asks.
        repeats: Searches of seeds of their own.
        tolerance: Ratio between the rate found and one that did not pass, less 1.
        over_allowed: A probe is long enough to pass with so many queries over the SLA.
        max_probe_s: The bracket does not go down to rates at which a probe would take longer.
        told: Called after each probe.

    Raises:
        ConfigError: The plan has no SLA, or a trace.
        ConfigError, DataError, LoadError: As `fastdlrm.load.run.run`.
    """
    if plan.sla_ms is None or plan.arrivals == "trace":
        raise ConfigError(
            f"search with sla_ms {plan.sla_ms} and arrivals {plan.arrivals!r}: it takes an SLA, "
            "and arrivals that are drawn"
        )
    if repeats < 1 or not 0 < tolerance < 1:
        raise ConfigError(f"repeats {repeats} and tolerance {tolerance:g}: 1 and more, and 0 to 1")
    needed = fewest_trials(1 - plan.percentile / 100, over_allowed, plan.confidence)
    with Crew(plan) as crew:

        def probe(rate: float, seed: int) -> LoadResult:
            duration_s = max(plan.duration_s, needed / rate)
            crew.settle(plan)
            return crew.run(
                msgspec.structs.replace(
                    plan, rate=rate, closed=None, seed=seed, duration_s=duration_s
                )
            )

        start = plan.rate or FIRST_SHARE * _closed_rate(crew, plan)
        probes: list[Probe] = []
        found = []
        for repeat in range(repeats):
            rate, tried = qps_at_sla(
                probe,
                start_rate=start,
                seed=plan.seed + 1000 * repeat,
                tolerance=tolerance,
                least_rate=needed / max_probe_s,
                told=told,
            )
            found.append(rate)
            probes += tried
            start = rate / STEP**0.5 or start
    return search_result(plan, found, probes, tolerance)


def qps_at_sla(
    probe: RunProbe,
    *,
    start_rate: float,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    least_rate: float = 0.0,
    told: Callable[[Probe], None] | None = None,
) -> tuple[float, list[Probe]]:
    """Bracket and bisect.

    Args:
        probe: Runs a rate and a seed.
        start_rate: Queries a second to begin with.
        seed: Of the first probe; each further one has the next.
        tolerance: See `search`.
        least_rate: The bracket does not go below.
        told: Called after each probe.

    Returns:
        The highest rate that passed below the lowest that did not, 0 where none passed; all probes.
    """
    probes: list[Probe] = []

    def passes(rate: float) -> bool:
        for _ in range(ATTEMPTS):
            found = judge(rate, seed + len(probes), probe(rate, seed + len(probes)))
            probes.append(found)
            if told is not None:
                told(found)
            if not found.by_generator:
                break
        return probes[-1].passed

    low, high = 0.0, math.inf
    if passes(start_rate):
        low, factor = start_rate, STEP
    else:
        high, factor = start_rate, 1 / STEP
    rate = start_rate
    for _ in range(MAX_STEPS):
        rate *= factor
        if (low and high < math.inf) or rate < least_rate:
            break
        if passes(rate):
            low = rate
        else:
            high = rate
    while low and high < math.inf and high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        if passes(middle):
            low = middle
        else:
            high = middle
    return low, probes


def judge(rate: float, seed: int, result: LoadResult) -> Probe:
    """Whether a run passes, and if not, why.

    Raises:
        LoadError: The run had no SLA or was a closed loop.
    """
    if result.sla is None or result.backlog is None or result.planned_qps is None:
        raise LoadError("a run without an SLA, or a closed loop, cannot be judged; plan both")
    why, by_generator = "", False
    lost = result.num_queries - result.num_answered
    if not result.is_valid and not result.num_waited:
        why, by_generator = "; ".join(result.invalid), True
    elif lost:
        kinds = {**result.failures, "not answered in time": result.num_unfinished}
        why = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    elif result.answered_qps < LEAST_ANSWERED_SHARE * result.planned_qps:
        why = f"answered {result.answered_qps:.1f} of {result.planned_qps:.1f} queries/s"
    elif result.backlog.is_growing:
        why = f"backlog grew from {result.backlog.at_third:.1f} to {result.backlog.at_end:.1f}"
    elif not result.is_valid:
        why = "; ".join(result.invalid)
    elif result.sla.outcome != "met":
        why = (
            f"{result.sla.num_over} of {result.sla.num_queries} over {result.sla.sla_ms:g} ms: "
            f"{result.sla.outcome}"
        )
    latency = result.latency_ms
    return Probe(
        rate=rate,
        seed=seed,
        passed=not why,
        why=why,
        by_generator=by_generator,
        answered_qps=result.answered_qps,
        p50_ms=None if latency is None else latency.p50,
        p95_ms=None if latency is None else latency.p95,
        p99_ms=None if latency is None else latency.p99,
        all_latency_ms=result.all_latency_ms,
        num_queries=result.sla.num_queries,
        num_over=result.sla.num_over,
        lateness_p99_ms=None if result.lateness_ms is None else result.lateness_ms.p99,
        histogram_us=result.histogram_us,
    )


def _closed_rate(crew: Crew, plan: Plan) -> float:
    """Queries a second that a closed loop reaches: no less than the server's capacity, roughly."""
    found = crew.run(
        msgspec.structs.replace(
            plan, rate=None, closed=max(8, plan.processes), warmup_s=1.0, duration_s=3.0
        )
    )
    if not found.answered_qps:
        raise LoadError(
            f"{plan.url}: no answer in a closed loop of 4 s ({found.failures}); name a rate to "
            "start the search with"
        )
    return found.answered_qps


def search_result(
    plan: Plan, found: list[float], probes: list[Probe], tolerance: float
) -> SearchResult:
    """What searches found, all repeats together.

    Args:
        plan: Of the probes.
        found: Rate of each repeat, 0 where none passed.
        probes: Of all repeats.
        tolerance: Of the search.
    """
    last = sorted({entry.rate: entry for entry in probes}.values(), key=lambda entry: entry.rate)
    above = [next((e for e in last if e.rate > rate and not e.passed), None) for rate in found]
    from_generator = [entry for entry in above if entry is not None and entry.by_generator]
    invalid = []
    if not any(found):
        invalid.append(f"no rate passed, down to {min(entry.rate for entry in probes):.3g}/s")
    if from_generator:
        invalid.append(
            f"at {from_generator[0].rate:.1f} queries/s it was the generator that could not: "
            f"{from_generator[0].why}"
        )
    rate = median(found)
    assert plan.sla_ms is not None
    return SearchResult(
        plan=msgspec.structs.replace(plan, rate=rate or 1.0, closed=None),
        loop="open loop",
        qps_at_sla=rate,
        samples_per_s_at_sla=rate * mean_size(plan.sizes, plan.seed),
        sla_ms=plan.sla_ms,
        percentile=plan.percentile,
        confidence=plan.confidence,
        tolerance=tolerance,
        repeats=tuple(found),
        is_valid=not invalid,
        invalid=tuple(invalid),
        probes=tuple(probes),
    )
