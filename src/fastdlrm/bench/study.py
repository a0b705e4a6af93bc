"""What a study of latency-bounded throughput is of, and what its rates say.

Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772.
"""

from collections.abc import Sequence
from statistics import median

import msgspec

from fastdlrm.bench.hill_climb import Climb, static_rows
from fastdlrm.contracts.bench_result import Effort
from fastdlrm.contracts.latency_bounded import LatencyBounded, Mode, OffloadStudy, Rung
from fastdlrm.errors import ConfigError
from fastdlrm.load.sizes import many_sizes

LEVELS = {"low": 0.5, "medium": 1.0, "high": 1.5}
"""Of an SLA, times the preset's."""

FULL = Effort(warmup_s=5.0, seconds=30.0, spread=0.02, min_samples=0, num_rounds=5)
QUICK = Effort(warmup_s=0.3, seconds=1.0, spread=0.12, min_samples=0, num_rounds=1)
"""Of a probe: warm-up, seconds; of a search: tolerance; seeds."""
LADDER = (16, 32, 64, 128, 256, 512, 1024)
OFFLOAD_LADDER = (96, 128, 192, 256, 384, 512)
QUICK_OFFLOAD_LADDER = (256,)
NO_OFFLOAD = 1 << 30
"""A threshold above all sizes: the top of a ladder."""
QUICK_LADDER = (64, 1024)
REFERENCE_LADDER = (32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Of the repository, which goes down it."""


def ladder_of(mode: str, is_quick: bool) -> tuple[int, ...]:
    """Values of B that are tried unless others are named."""
    if is_quick:
        return QUICK_LADDER
    return REFERENCE_LADDER if mode == "reference" else LADDER


def offload_ladder_of(is_quick: bool) -> tuple[int, ...]:
    """Thresholds that are tried unless others are named."""
    return QUICK_OFFLOAD_LADDER if is_quick else OFFLOAD_LADDER


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched.

    Raises:
        ConfigError: A value is out of range, or values contradict each other.
    """

    workers: int
    sizes: str = "production"
    """Samples a query, as `fastdlrm.load.sizes` names them."""
    sla_ms: float
    percentile: float = 95.0
    ladder: tuple[int, ...] = LADDER
    """Values of B to try; the static choice joins them."""
    offload_device: str = ""
    """Where large queries go whole, once B is chosen; empty: nowhere."""
    offload_ladder: tuple[int, ...] = OFFLOAD_LADDER
    """Sizes of queries from which on they go there, to try."""
    mode: Mode = "search"
    sweep: bool = True
    """Whether all of the ladder is measured, or what the climb visits."""
    is_quick: bool = False
    seed: int = 0
    max_lateness_ms: float | None = None
    """As `fastdlrm.load.plan.Plan.max_lateness_ms`."""

    def __post_init__(self) -> None:
        if self.percentile not in (95.0, 99.0):
            raise ConfigError(f"--percentile {self.percentile:g}: 95 or 99 is allowed")
        if self.mode == "reference" and self.percentile != 95.0:
            raise ConfigError(
                f"--mode reference with --percentile {self.percentile:g}: it takes the 95th of "
                "every 64 queries"
            )
        if self.offload_device and self.mode == "reference":
            raise ConfigError(
                "--offload-device with --mode reference: the repository models its accelerator; "
                "leave one of them out"
            )
        if self.workers < 1 or not self.sla_ms > 0:
            raise ConfigError(
                f"--workers {self.workers}, --sla-ms {self.sla_ms:g}: 1 or more, and above 0"
            )

    @property
    def confidence(self) -> float:
        """With which a probe that passes shows that the SLA is kept."""
        return 0.5 if self.is_quick else 0.99

    @property
    def static(self) -> int:
        """B without tuning."""
        return static_rows(int(many_sizes(self.sizes, self.seed).max()), self.workers)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The ladder, ascending; the reference's way knows no static choice."""
        own = set() if self.mode == "reference" else {self.static}
        return tuple(sorted({*self.ladder, *own}))


def sla_of(model: str, preset_ms: float | None, level: str) -> float:
    """An SLA in milliseconds.

    Args:
        model: Preset.
        preset_ms: Its own.
        level: low, medium or high.

    Raises:
        ConfigError: It has none, or there is no such level.
    """
    if level not in LEVELS:
        raise ConfigError(f"--sla {level!r}: {', '.join(LEVELS)} are allowed")
    if preset_ms is None:
        raise ConfigError(f"model {model!r} has no sla_ms; give --sla-ms")
    return preset_ms * LEVELS[level]


def conclude(
    study: Study,
    climb: Climb,
    rungs: Sequence[Rung],
    offload: OffloadStudy | None = None,
) -> LatencyBounded:
    """What the rates say.

    Args:
        study: Which.
        climb: Of the medians.
        rungs: Those measured without offloading, B ascending; all of the ladder if the study sweeps
            it.
        offload: What was found with it.
    """
    medians = {rung.rows: median(rung.rates) for rung in rungs}
    static_qps = medians.get(study.static, 0.0)
    return LatencyBounded(
        mode=study.mode,
        sla_ms=study.sla_ms,
        percentile=study.percentile,
        confidence=study.confidence,
        sizes=study.sizes,
        workers=study.workers,
        is_quick=study.is_quick,
        rungs=tuple(rungs),
        static=study.static,
        tuned=climb.best,
        visited=climb.visited,
        argmax=max(medians, key=lambda rows: medians[rows]) if study.sweep else None,
        tuned_to_static=medians[climb.best] / static_qps if static_qps else None,
        offload=offload,
    )


def conclude_offload(study: Study, climb: Climb, none: Rung, rungs: Sequence[Rung]) -> OffloadStudy:
    """What the rates with offloading say.

    Args:
        study: Which.
        climb: Of the medians, over thresholds; `NO_OFFLOAD` stands for none.
        none: What was found without.
        rungs: Those measured, thresholds ascending; all of the ladder if the study sweeps it.
    """
    medians = {rung.offload_min_rows: median(rung.rates) for rung in (none, *rungs)}
    tuned = 0 if climb.best == NO_OFFLOAD else climb.best
    sizes = many_sizes(study.sizes, study.seed)
    is_offloaded = sizes >= (tuned or NO_OFFLOAD)
    return OffloadStudy(
        device=study.offload_device,
        rungs=tuple(rungs),
        tuned=tuned,
        visited=tuple(0 if at == NO_OFFLOAD else at for at in climb.visited),
        argmax=max(medians, key=lambda at: medians[at]) if study.sweep else None,
        tuned_to_none=medians[tuned] / medians[0] if medians[0] else None,
        queries_share=float(is_offloaded.mean()),
        samples_share=float(sizes[is_offloaded].sum() / sizes.sum()),
    )


def notes_of(found: LatencyBounded) -> list[str]:
    """What a reader should not miss."""
    notes = [
        "the server also merges waiting parts up to B samples, which that of DeepRecSys does not",
        "server, workers and generator share this machine's cores",
    ]
    if found.is_quick:
        notes.append(
            "quick: short probes of one seed, which pass where the percentile measured is within "
            "the SLA; that is not MLPerf's confidence of 0.99"
        )
    if found.mode == "reference":
        notes.append(
            "the reference's way: gaps of whole milliseconds, latency from sending, a queue that "
            "holds the generator up: its rates are too high, and none above 1000/s can be found"
        )
    if found.argmax not in (None, found.tuned):
        notes.append(
            f"the hill climb stopped at B {found.tuned}, the sweep's highest rate is at "
            f"{found.argmax}: the rates have more than one peak, or their noise has"
        )
    rates = {rung.rows: rung.rates for rung in found.rungs}
    is_tuned = found.tuned != found.static and found.static in rates
    if is_tuned and min(rates[found.tuned]) <= max(rates[found.static]):
        notes.append(
            f"rates of B {found.tuned} and of the static {found.static} overlap: that tuning "
            "gains is not shown"
        )
    offload = found.offload
    if offload is not None and offload.argmax not in (None, offload.tuned):
        notes.append(
            f"the climb over thresholds stopped at {offload.tuned or 'none'}, the sweep's highest "
            f"rate is at {offload.argmax or 'none'}"
        )
    invalid = [(f"B {rung.rows}", why) for rung in found.rungs for why in rung.invalid]
    for rung in offload.rungs if offload is not None else ():
        invalid += [(f"offload from {rung.offload_min_rows}", why) for why in rung.invalid]
    return notes + [f"invalid: {which}: {why}" for which, why in invalid]
