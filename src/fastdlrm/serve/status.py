"""What the page shows and `/v1/status` tells: traffic, models, the server's own state."""

import time

import msgspec

from fastdlrm import __version__
from fastdlrm.serve.metrics import STAGES, GaugeValues, Metrics
from fastdlrm.serve.recent import Second
from fastdlrm.serve.repository import Repository, Version

WINDOW_S = 10
"""Seconds that the figures of `Traffic` are taken over."""


class Traffic(msgspec.Struct, kw_only=True):
    """Figures of the last `WINDOW_S` seconds."""

    qps: float
    """Queries answered with scores, a second."""
    rows_per_s: float
    """Samples of them, a second."""
    errors_per_s: float
    """Queries without scores, a second."""
    shed_per_s: float
    """Those of them refused because they would not be answered in time."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    batch_rows: float | None
    """Mean samples of a batch."""
    batch_fill: float | None
    """Mean share of the most a batch may hold."""
    queue_rows: int
    """Samples that wait now."""
    in_flight: int
    """Requests being answered now."""


class Seconds(msgspec.Struct, kw_only=True):
    """Figures of single seconds, each list as long as `time`."""

    time: list[float]
    """End of each, seconds since 1970."""
    qps: list[int]
    rows: list[int]
    errors: list[int]
    shed: list[int]
    queue_rows: list[int]
    p50_ms: list[float | None]
    p95_ms: list[float | None]
    p99_ms: list[float | None]


class StageSum(msgspec.Struct, kw_only=True):
    """How often a stage was passed and how long that took, since the server started."""

    count: int
    sum_s: float


class ModelStatus(msgspec.Struct, kw_only=True):
    """One version of a model."""

    name: str
    version: str
    state: str
    """ready, loading, unloading or unavailable."""
    reason: str
    """Why it is not ready; empty where it is."""
    workers: int
    restarts: int
    queue_rows: int
    sequence: int
    """Number of the last delta applied; 0: none."""
    staleness_s: float | None
    """Age of its embeddings; None where unknown."""
    stages: dict[str, StageSum]
    """By stage; of all versions together, told with the one that serves."""


class Status(msgspec.Struct, kw_only=True):
    """The server now."""

    version: str
    """Of the package."""
    state: str
    """starting, ready, leaving (not ready, still serving) or draining."""
    ready: bool
    uptime_s: float
    window_s: int
    """Seconds that `traffic` is taken over; fewer right after the start."""
    traffic: Traffic
    seconds: Seconds
    models: list[ModelStatus]


class StatusReader:
    """Puts a `Status` together.

    Args:
        repository: Its models.
        metrics: Their traffic.
    """

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics
        self._started = time.time()

    @property
    def started(self) -> float:
        """When the server started, seconds since 1970."""
        return self._started

    def read(self, *, state: str, in_flight: int, since: float) -> Status:
        """The server now.

        Args:
            state: The server's own.
            in_flight: Requests being answered.
            since: Only seconds that ended after this time are told one by one.
        """
        versions = [v for v in self._repository.index() if v.state != "UNAVAILABLE" or v.reason]
        models = [self._model(version) for version in versions]
        queue_rows = sum(model.queue_rows for model in models)
        count, total = self._metrics.recent.over(WINDOW_S)
        return Status(
            version=__version__,
            state=state,
            ready=state == "ready",
            uptime_s=time.time() - self._started,
            window_s=count,
            traffic=traffic_of(
                total,
                max(count, 1),
                queue_rows=queue_rows,
                in_flight=in_flight,
            ),
            seconds=seconds_of(self._metrics.recent.since(since)),
            models=models,
        )

    def gauges(self) -> GaugeValues:
        """The models' values of `metrics.GAUGES`."""
        yield "fastdlrm_start_time_seconds", (), self._started
        for version in self._repository.index():
            labels = (version.name, version.number, version.state.lower())
            yield "fastdlrm_model_info", labels, 1
        for version in self._repository.serving():
            engine = version.state_of_engine()
            if engine is None:
                continue
            model = (version.name,)
            yield "fastdlrm_queue_rows", model, engine.queue_rows
            yield "fastdlrm_workers", model, engine.num_workers
            yield "fastdlrm_worker_restarts", model, engine.num_restarts
            yield "fastdlrm_delta_sequence", model, engine.sequence
            if engine.staleness_s is not None:
                yield "fastdlrm_staleness_seconds", model, engine.staleness_s

    def _model(self, version: Version) -> ModelStatus:
        engine = version.state_of_engine()
        stages = {}
        if version.state == "READY":
            counted = self._metrics.of(version.name)
            for stage in STAGES:
                histogram = getattr(counted, stage)
                stages[stage] = StageSum(count=histogram.count, sum_s=histogram.total)
        return ModelStatus(
            name=version.name,
            version=version.number,
            state=version.state.lower(),
            reason=version.reason,
            workers=engine.num_workers if engine else 0,
            restarts=engine.num_restarts if engine else 0,
            queue_rows=engine.queue_rows if engine else 0,
            sequence=engine.sequence if engine else 0,
            staleness_s=engine.staleness_s if engine else None,
            stages=stages,
        )


def traffic_of(total: Second, seconds: int, *, queue_rows: int, in_flight: int) -> Traffic:
    """Figures of some seconds' sum."""
    batches = total.batches
    return Traffic(
        qps=total.queries / seconds,
        rows_per_s=total.rows / seconds,
        errors_per_s=total.errors / seconds,
        shed_per_s=total.shed / seconds,
        p50_ms=total.latency_ms(0.5),
        p95_ms=total.latency_ms(0.95),
        p99_ms=total.latency_ms(0.99),
        batch_rows=total.batch_rows / batches if batches else None,
        batch_fill=total.batch_fill / batches if batches else None,
        queue_rows=queue_rows,
        in_flight=in_flight,
    )


def seconds_of(pairs: list[tuple[float, Second]]) -> Seconds:
    """Single seconds, by figure."""
    past = [second for _, second in pairs]
    return Seconds(
        time=[end for end, _ in pairs],
        qps=[second.queries for second in past],
        rows=[second.rows for second in past],
        errors=[second.errors for second in past],
        shed=[second.shed for second in past],
        queue_rows=[second.queue_rows for second in past],
        p50_ms=[second.latency_ms(0.5) for second in past],
        p95_ms=[second.latency_ms(0.95) for second in past],
        p99_ms=[second.latency_ms(0.99) for second in past],
    )
