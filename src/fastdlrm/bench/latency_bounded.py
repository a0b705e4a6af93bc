"""Latency-bounded throughput of the project's server, each B on a server of its own.

The rate at which the tail latency keeps the SLA is searched for each B; a hill climb from the
static choice, the largest query dealt out to all workers, chooses one. At that B a second climb
chooses the size from which on queries go whole to a worker on another device, if one is named.

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
from fastdlrm.bench.service_times import ceiling_qps, medians, service_times
from fastdlrm.bench.study import NO_OFFLOAD, Study, conclude, conclude_offload, notes_of
from fastdlrm.contracts.bench_result import BenchResult, Effort, Measurement
from fastdlrm.contracts.latency_bounded import OffloadStudy, Probe, Rung, Update
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
        offload = runner.offload(climb.best) if study.offload_device else None
    found = conclude(study, climb, runner.rungs, offload)
    result = result_of(
        "latency-bounded",
        model,
        started=started,
        matmul=manifest.matmul,
        effort=effort,
        settings=msgspec.to_builtins(study),
        measurements=[
            *runner.service.values(),
            *runner.offload_service.values(),
            *(_measurement(rung, study) for rung in runner.rungs),
            *(_measurement(rung, study) for rung in (offload.rungs if offload else ())),
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
        self.offload_service: dict[int, Measurement] = {}
        if study.offload_device:
            points = sorted({1, *study.offload_ladder, int(self._sizes.max())})
            self.offload_service = service_times(
                model, folder / "model", points, device=study.offload_device
            )
        self._found: dict[tuple[int, int], Rung] = {}

    @property
    def rungs(self) -> list[Rung]:
        """Those measured without offloading, B ascending."""
        return [rung for key, rung in sorted(self._found.items()) if key[1] == NO_OFFLOAD]

    def climb(self) -> Climb:
        """From the static choice, or down all of the ladder as the repository does."""
        rungs, is_reference = self._study.rungs, self._study.mode == "reference"
        first = rungs[-1] if is_reference else self._study.static
        return hill_climb(rungs, first, lambda rows: median(self.rung(rows).rates))

    def offload(self, rows: int) -> OffloadStudy:
        """Down from no offloading, at B = `rows`."""
        ladder = (*sorted(self._study.offload_ladder), NO_OFFLOAD)
        climb = hill_climb(ladder, NO_OFFLOAD, lambda at: median(self.rung(rows, at).rates))
        for at in ladder if self._study.sweep else ():
            self.rung(rows, at)
        found = {at: self._found[B, at] for B, at in sorted(self._found) if rows == B}
        none = found.pop(NO_OFFLOAD)
        return conclude_offload(self._study, climb, none, list(found.values()))

    def rung(self, rows: int, offload_from: int = NO_OFFLOAD) -> Rung:
        """Rates of B = `rows`, with queries offloaded from a size on."""
        if (rows, offload_from) not in self._found:
            deadline_ms = min(max(10 * self._study.sla_ms, LEAST_DEADLINE_MS), MOST_DEADLINE_MS)
            overrides = [
                *SERVER,
                f"limits.default_timeout_ms={deadline_ms}",
                f"workers.count={self._study.workers}",
                f"batching.max_batch_rows={rows}",
            ]
            if offload_from != NO_OFFLOAD:
                device = self._study.offload_device
                overrides += [f"offload.min_rows={offload_from}", f"offload.device={device}"]
            with server_process(self._folder / "model", self._folder / "log", overrides) as url:
                if self._study.mode == "reference":
                    found = self._reference(url, rows)
                else:
                    found = self._search(url, rows, offload_from)
                self._found[rows, offload_from] = found
        return self._found[rows, offload_from]

    def _search(self, url: str, rows: int, offload_from: int) -> Rung:
        study, effort = self._study, self._effort
        found = search(
            self._plan(
                url,
                rate=self._first_rate(rows, offload_from),
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
            offload_min_rows=0 if offload_from == NO_OFFLOAD else offload_from,
            rates=found.repeats,
            samples_per_s=found.samples_per_s_at_sla,
            ceiling_qps=self._ceiling(rows, offload_from),
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

    def _ceiling(self, rows: int, offload_from: int = NO_OFFLOAD) -> float:
        """Of the workers, and of the one that takes the offloaded queries, the lower."""
        is_large = self._sizes >= offload_from
        share = float(is_large.mean())
        bounds = []
        if share < 1:
            of_workers = ceiling_qps(
                medians(self.service), self._sizes[~is_large], rows, self._study.workers
            )
            bounds.append(of_workers / (1 - share))
        if share:
            largest = int(self._sizes.max())
            offloaded = ceiling_qps(
                medians(self.offload_service), self._sizes[is_large], largest, num_workers=1
            )
            bounds.append(offloaded / share)
        return min(bounds)

    def _first_rate(self, rows: int, offload_from: int) -> float:
        """Where a search starts: a little below what the last B makes likely."""
        ceiling = self._ceiling(rows, offload_from)
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
            **({"offloaded from": str(rung.offload_min_rows)} if rung.offload_min_rows else {}),
        },
        unit="queries/s",
        rounds=rounds,
        stopped="samples",
        summary=summarise(rounds),
        samples_per_s=rung.samples_per_s,
    )
