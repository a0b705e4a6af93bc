"""Latency-bounded throughput of the project's server, each B on a server of its own.

The rate at which the tail latency keeps the SLA is searched for each B; a hill climb from the
static choice, the largest query dealt out to all workers, chooses one.

Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from fastdlrm.bench.exported import NAME, export_drawn, write_queries
from fastdlrm.bench.hill_climb import Climb, hill_climb
from fastdlrm.bench.measure import summarise
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.result import result_of, start
from fastdlrm.bench.server_process import server_process
from fastdlrm.bench.service_times import ceiling_qps, service_times
from fastdlrm.bench.study import Study, conclude, notes_of
from fastdlrm.contracts.bench_result import BenchResult, Effort, Measurement
from fastdlrm.contracts.latency_bounded import Probe, Rung, Update
from fastdlrm.load.plan import Plan
from fastdlrm.load.reference import ReferenceOptions, reference_search
from fastdlrm.load.search import FIRST_SHARE, MAX_PROBE_S, OVER_ALLOWED, STEP, search
from fastdlrm.load.sizes import many_sizes

QUICK_OVER_ALLOWED, QUICK_PROBE_S = 3, 10.0
QUICK_REFERENCE = ReferenceOptions(num_updates=24, num_kept=8)

LEAST_DEADLINE_MS, MOST_DEADLINE_MS = 1000.0, 60_000.0
"""A query may take ten times its SLA, within these bounds: what is late is counted, and only what
cannot be answered for long is refused."""
NUM_ROWS = 8192
"""Distinct rows that queries are made of: more than caches hold of the tables' rows."""
SERVER = (
    "limits.max_body_bytes=67108864",
    "limits.max_bodies_bytes=2147483648",
    "batching.arena_bytes=1073741824",
    "http.max_connections=4096",
    "watch.every_s=0",
)

Told = Callable[[int, Probe | Update], None]


def bench_latency_bounded(
    model: BenchModel, study: Study, effort: Effort, told: Told = lambda rows, probe: None
) -> BenchResult:
    """Search the rates of a preset's model with drawn weights.

    Args:
        model: What is served; on the CPU.
        study: How.
        effort: Warm-up and seconds of a probe, tolerance of a search, seeds.
        told: Called after each probe with its B.

    Raises:
        ConfigError: The tables do not fit, or sizes are wrong.
        ServeError, LoadError: The server or the generator broke.
    """
    started = start()
    with TemporaryDirectory(prefix="fastdlrm-bench-") as name:
        folder = Path(name)
        manifest = export_drawn(model, folder / "model")
        write_queries(folder / "queries.arrow", model.batches(NUM_ROWS, 1)[0])
        runner = _Runner(model, study, effort, folder, told)
        climb = runner.climb()
        for rows in study.rungs if study.sweep else ():
            runner.rung(rows)
    found = conclude(study, climb, runner.rungs)
    result = result_of(
        "latency-bounded",
        model,
        started=started,
        matmul=manifest.matmul,
        effort=effort,
        settings=msgspec.to_builtins(study),
        measurements=[
            *runner.service.values(),
            *(_measurement(rung, study) for rung in runner.rungs),
        ],
        notes=notes_of(found),
    )
    return msgspec.structs.replace(result, latency_bounded=found)


class _Runner:
    """Measures rungs, each once."""

    def __init__(
        self, model: BenchModel, study: Study, effort: Effort, folder: Path, told: Told
    ) -> None:
        self._study, self._effort, self._folder, self._told = study, effort, folder, told
        self._sizes = many_sizes(study.sizes, study.seed)
        points = sorted({1, *study.rungs, int(self._sizes.max())})
        self.service = service_times(model, folder / "model", points)
        self._found: dict[int, Rung] = {}

    @property
    def rungs(self) -> list[Rung]:
        """Those measured, B ascending."""
        return [self._found[rows] for rows in sorted(self._found)]

    def climb(self) -> Climb:
        """From the static choice, or down all of the ladder as the repository does."""
        rungs, is_reference = self._study.rungs, self._study.mode == "reference"
        first = rungs[-1] if is_reference else self._study.static
        return hill_climb(rungs, first, lambda rows: median(self.rung(rows).rates))

    def rung(self, rows: int) -> Rung:
        """Rates of B = `rows`."""
        if rows not in self._found:
            deadline_ms = min(max(10 * self._study.sla_ms, LEAST_DEADLINE_MS), MOST_DEADLINE_MS)
            overrides = (
                *SERVER,
                f"limits.default_timeout_ms={deadline_ms}",
                f"workers.count={self._study.workers}",
                f"batching.max_batch_rows={rows}",
            )
            with server_process(self._folder / "model", self._folder / "log", overrides) as url:
                is_reference = self._study.mode == "reference"
                self._found[rows] = (self._reference if is_reference else self._search)(url, rows)
        return self._found[rows]

    def _search(self, url: str, rows: int) -> Rung:
        study, effort = self._study, self._effort
        found = search(
            self._plan(
                url,
                rate=self._first_rate(rows),
                duration_s=effort.seconds,
                warmup_s=effort.warmup_s if study.is_quick else None,
                drain_s=max(1.0 if study.is_quick else 5.0, 2e-3 * study.sla_ms),
                confidence=study.confidence,
            ),
            repeats=effort.num_rounds,
            tolerance=effort.spread,
            over_allowed=QUICK_OVER_ALLOWED if study.is_quick else OVER_ALLOWED,
            max_probe_s=QUICK_PROBE_S if study.is_quick else MAX_PROBE_S,
            told=lambda probe: self._told(rows, probe),
        )
        return Rung(
            rows=rows,
            rates=found.repeats,
            samples_per_s=found.samples_per_s_at_sla,
            ceiling_qps=self._ceiling(rows),
            probes=found.probes,
            invalid=found.invalid,
        )

    def _reference(self, url: str, rows: int) -> Rung:
        seeds = range(self._study.seed, self._study.seed + self._effort.num_rounds)
        found = [
            reference_search(
                self._plan(url, arrivals="reference_poisson_ms", rate=1.0, seed=seed),
                QUICK_REFERENCE if self._study.is_quick else ReferenceOptions(),
                told=lambda update: self._told(rows, update),
            )
            for seed in seeds
        ]
        return Rung(
            rows=rows,
            rates=tuple(each.qps for each in found),
            samples_per_s=median(each.samples_per_s for each in found),
            ceiling_qps=self._ceiling(rows),
            updates=tuple(each.updates for each in found),
        )

    def _plan(self, url: str, **more: Any) -> Plan:
        study = self._study
        return Plan(
            url=url,
            model=NAME,
            sizes=study.sizes,
            sla_ms=study.sla_ms,
            percentile=study.percentile,
            rows=str(self._folder / "queries.arrow"),
            max_lateness_ms=study.max_lateness_ms,
            **{"seed": study.seed, **more},
        )

    def _ceiling(self, rows: int) -> float:
        times = {size: found.summary.median for size, found in self.service.items()}
        return ceiling_qps(times, self._sizes, rows, self._study.workers)

    def _first_rate(self, rows: int) -> float:
        """Where a search starts: a little below what the last B makes likely."""
        ceiling = self._ceiling(rows)
        share = 0.0
        if self._found:
            last = list(self._found.values())[-1]
            share = min(median(last.rates) / last.ceiling_qps / STEP**0.5, 1.0)
        return (share or FIRST_SHARE) * ceiling


def _measurement(rung: Rung, study: Study) -> Measurement:
    rounds = tuple((rate,) for rate in rung.rates)
    return Measurement(
        key={
            "measured": "qps_at_sla" if study.mode == "search" else "the reference's rate",
            "sla": f"p{study.percentile:g} {study.sla_ms:g} ms",
            "sizes": study.sizes,
            "workers": str(study.workers),
            "B": str(rung.rows),
        },
        unit="queries/s",
        rounds=rounds,
        stopped="samples",
        summary=summarise(rounds),
        samples_per_s=rung.samples_per_s,
    )
