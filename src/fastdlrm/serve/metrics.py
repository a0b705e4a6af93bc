"""What the server counts: a registry of its own, in Prometheus' names and units.

Invariants: the names here are those of docs/guides/serving.md; what a request touches is bound once
a model (`ModelMetrics`), so counting it looks nothing up.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fastdlrm.errors import DeadlineExceeded, NotFound, Overloaded, RequestError
from fastdlrm.serve.instruments import counters, histograms
from fastdlrm.serve.recent import Recent

STAGES = ("parse", "queue", "encode", "compute", "respond", "total")
"""parse: from the headers' arrival until the body is decoded and checked; queue: in the front,
until a worker is given it; encode and compute: in the worker; respond: scores to bytes; total: from
the headers' arrival to the scores, so without respond. What total holds beyond parse, queue, encode
and compute is the hand-over: messages to the worker and back, and waiting there behind a batch."""

# 50 us to 10 s: two to four bounds a decade, finer where a ranking request usually ends
SECONDS = (
    *(0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
SHARES = tuple(tenth / 10 for tenth in range(1, 11))
SWAP_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

Gauge = tuple[str, str, tuple[str, ...]]
GAUGES: tuple[Gauge, ...] = (
    ("fastdlrm_model_info", "1 for each version known", ("model", "version", "state")),
    ("fastdlrm_queue_rows", "Samples that wait for a worker", ("model",)),
    ("fastdlrm_workers", "Worker processes that compute", ("model",)),
    ("fastdlrm_worker_restarts", "Workers that were replaced", ("model",)),
    ("fastdlrm_staleness_seconds", "Age of the newest embeddings served", ("model",)),
    ("fastdlrm_delta_sequence", "Number of the last delta applied; 0: none", ("model",)),
    ("fastdlrm_in_flight_requests", "Requests being answered", ()),
    ("fastdlrm_http_connections", "Open HTTP connections", ()),
    ("fastdlrm_ready", "1 where new requests are welcome", ()),
    ("fastdlrm_start_time_seconds", "When the server started, since 1970", ()),
)
"""Values that are looked up at a scrape: name, meaning, labels."""

SCORING = frozenset(("infer", "rank", "score", "ModelInfer", "ModelStreamInfer"))
"""Routes of HTTP and methods of gRPC that score."""
NO_FAILURE = frozenset(("200", "OK", "499", "CANCELLED"))
"""Codes of answers that brought scores, and of clients that did not wait for any."""

GaugeValues = Iterable[tuple[str, tuple[str, ...], float]]
"""A gauge's name, its labels' values, its value."""


class ModelMetrics:
    """What is counted for one model.

    Args:
        metrics: All metrics.
        model: Its name.
    """

    def __init__(self, metrics: "Metrics", model: str) -> None:
        stage = metrics.stage_seconds
        self.parse, self.queue, self.encode, self.compute, self.respond, self.total = (
            stage.labels(model, name) for name in STAGES
        )
        self.rows = metrics.query_rows.labels(model)
        self.batch_rows = metrics.batch_rows.labels(model)
        self.batch_fill = metrics.batch_fill.labels(model)
        self.swap = metrics.swap_seconds.labels(model)
        self._model = model
        self._metrics = metrics

    def flushed(self, reason: str, rows: int, fill: float) -> None:
        """Count a batch that left the queue.

        Args:
            reason: Why it left.
            rows: Its samples.
            fill: Share of the most a batch may hold.
        """
        self._metrics.flushes.labels(self._model, reason).value += 1
        self.batch_rows.observe(rows)
        self.batch_fill.observe(fill)
        now = self._metrics.recent.now
        now.batches += 1
        now.batch_rows += rows
        now.batch_fill += fill

    def failed(self, problem: BaseException) -> None:
        """Count a request for this model that brought no scores."""
        cause = cause_of(problem)
        self._metrics.failures.labels(self._model, cause).value += 1
        now = self._metrics.recent.now
        now.shed += cause == "overloaded"
        now.missed += cause == "deadline"


class Metrics:
    """All metrics of a server.

    Attributes:
        recent: The last minutes, second by second.
        gauges: Gives the values of `GAUGES` at a scrape; set once there is a server to ask.
    """

    def __init__(self) -> None:
        self.recent = Recent()
        self.gauges: Callable[[], GaugeValues] = tuple
        self.stage_seconds = histograms(
            "fastdlrm_stage_seconds", "Time of a query by stage", SECONDS, "model", "stage"
        )
        self.query_rows = histograms("fastdlrm_query_rows", "Samples of a query", ROWS, "model")
        self.batch_rows = histograms("fastdlrm_batch_rows", "Samples of a batch", ROWS, "model")
        self.batch_fill = histograms(
            "fastdlrm_batch_fill", "Share of the most a batch may hold", SHARES, "model"
        )
        self.flushes = counters(
            "fastdlrm_batches", "Batches by why they left the queue", "model", "reason"
        )
        self.failures = counters(
            "fastdlrm_failed_queries", "Queries without scores by cause", "model", "cause"
        )
        self.requests = counters(
            "fastdlrm_requests", "Requests answered", "protocol", "route", "code"
        )
        self.swap_seconds = histograms(
            "fastdlrm_swap_seconds", "Time to load, check and warm a version", SWAP_SECONDS, "model"
        )
        self.task_failures = counters(
            "fastdlrm_task_failures", "Failures of tasks of the server's own, begun again", "task"
        )
        self.loop_lag = histograms(
            "fastdlrm_event_loop_lag_seconds", "How late the event loop runs a timer", SECONDS
        )
        self.gc_pauses = histograms(
            "fastdlrm_gc_pause_seconds", "Pauses of Python's collector", SECONDS, "generation"
        )
        self._models: dict[str, ModelMetrics] = {}
        self._gc_started_ns = 0
        self._registry = CollectorRegistry()
        for family in (
            *(self.stage_seconds, self.query_rows, self.batch_rows, self.batch_fill),
            *(self.flushes, self.failures, self.requests, self.swap_seconds),
            *(self.task_failures, self.loop_lag, self.gc_pauses, _Gauges(self)),
        ):
            self._registry.register(family)
        ProcessCollector(registry=self._registry)

    def of(self, model: str) -> ModelMetrics:
        """What is counted for a model that is served; never ask by a name a client made up."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics(self, model)
        return found

    def answered(self, protocol: str, route: str, code: str) -> None:
        """Count an answer; `route` is one of a fixed set, never a client's path."""
        self.requests.labels(protocol, route, code).value += 1
        if route in SCORING and code not in NO_FAILURE:
            self.recent.now.errors += 1

    def watch_gc(self) -> None:
        """Count the pauses of Python's collector from now on."""
        gc.callbacks.append(self._on_gc)

    def unwatch_gc(self) -> None:
        """Count them no longer."""
        gc.callbacks.remove(self._on_gc)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_started_ns = time.perf_counter_ns()
        else:
            pause_ns = time.perf_counter_ns() - self._gc_started_ns
            self.gc_pauses.labels(str(info["generation"])).observe(pause_ns / 1e9)


class _Gauges(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families().values()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families = self._families()
        for name, labels, value in self._metrics.gauges():
            families[name].add_metric(labels, value)
        return families.values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        return {name: GaugeMetricFamily(name, text, labels=of) for name, text, of in GAUGES}


def cause_of(problem: BaseException) -> str:
    """Why a query brought no scores, as the label "cause" says it."""
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (Overloaded, "overloaded"),
        (DeadlineExceeded, "deadline"),
        (NotFound, "not_found"),
        (RequestError, "invalid"),
        (asyncio.CancelledError, "client_gone"),
    )
    return next((cause for kind, cause in kinds if isinstance(problem, kind)), "internal")
