"""What a run of the load generator does: all of it is said before it starts."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.errors import ConfigError
from fastdlrm.load.arrivals import ArrivalLaw, Times, arrival_times, read_trace
from fastdlrm.load.sizes import Sizes, check_sizes, query_sizes

BodyFormat = Literal["binary", "json", "rank"]
"""binary, json: the Open Inference Protocol, tensors raw or in JSON; rank: `POST :rank`."""

LATENESS_SHARE_OF_SLA = 0.01
LATENESS_MS = 0.5
WARMUP_S, WARMUP_QUERIES = 5.0, 500


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run.

    Raises:
        ConfigError: A value is out of range, or values contradict each other.
    """

    url: str
    """Of the server: "http://HOST:PORT"."""
    model: str
    version: str = ""
    """Of the model; empty = the one in force."""
    rate: float | None = None
    """Queries a second (open loop): they are sent on schedule, whatever the server does."""
    closed: int | None = None
    """Queries in flight (closed loop): each answer sends the next. Such a run cannot show what a
    rate does to latency, and every output says so."""
    arrivals: ArrivalLaw = "exponential"
    """How the gaps of an open loop are drawn."""
    trace: str = ""
    """File of times for arrivals = "trace"; `rate` stretches it, without one it is as it is."""
    sizes: str = "production"
    """Samples a query: see `fastdlrm.load.sizes`."""
    duration_s: float = 30.0
    """Of what is measured. A trace that ends earlier ends the run."""
    warmup_s: float | None = None
    """Before it, measured but not counted; None = 5 s, and as long as 500 queries take."""
    drain_s: float = 5.0
    """How long answers are waited for after the last arrival."""
    sla_ms: float | None = None
    """Latency that `percentile` percent of the queries must not exceed."""
    percentile: float = 99.0
    confidence: float = 0.99
    """With which that is shown, as MLPerf's early stopping shows it."""
    seed: int = 0
    """Of arrivals, sizes and rows."""
    processes: int = 1
    """That send; the schedule is dealt out between them."""
    max_connections: int = 2048
    """Of all processes. A query that finds none free waits, and is late."""
    body: BodyFormat = "binary"
    rows: str = "server"
    """Raw rows that queries are made of: "server" asks it for examples, "random" draws numbers of
    the types that the model's metadata says, else a .arrow, .parquet or .jsonl file."""
    user_columns: tuple[str, ...] = ()
    """Columns of the user: one value a query, for all of its samples."""
    top_k: int | None = None
    """Ask for the k best samples instead of all scores."""
    timeout_ms: float | None = None
    """Time that each request says it may take; None = it says nothing."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with each request, such as an authorization."""
    max_lateness_ms: float | None = None
    """99th percentile of how late queries may be sent; beyond it the run is invalid. None = 0.5 ms,
    or 1 % of the SLA where that is more: latency counts from the schedule, so that lateness makes
    it too high, never too low."""

    def __post_init__(self) -> None:
        self._check_loop()
        self._check_numbers()
        check_sizes(self.sizes)
        target = urlsplit(self.url)
        if target.scheme not in ("http", "https") or not target.hostname:
            raise ConfigError(f"url {self.url!r}: expected http://HOST:PORT or https://HOST:PORT")

    @property
    def loop(self) -> str:
        """Which loop drives it."""
        return "open loop" if self.closed is None else "closed loop"

    @property
    def lateness_limit_ms(self) -> float:
        """See `max_lateness_ms`."""
        if self.max_lateness_ms is not None:
            return self.max_lateness_ms
        return max(LATENESS_MS, LATENESS_SHARE_OF_SLA * (self.sla_ms or 0.0))

    @property
    def warmup_seconds(self) -> float:
        """See `warmup_s`."""
        if self.warmup_s is not None:
            return self.warmup_s
        return max(WARMUP_S, WARMUP_QUERIES / self.rate) if self.rate else WARMUP_S

    def _check_loop(self) -> None:
        is_trace = self.arrivals == "trace"
        if is_trace != bool(self.trace):
            raise ConfigError(
                f"arrivals {self.arrivals!r} with trace {self.trace!r}: arrivals 'trace' takes a "
                "file, the others none"
            )
        if self.closed is not None and (self.rate is not None or is_trace):
            raise ConfigError("closed and rate (or a trace) exclude each other; give one of them")
        if self.closed is None and self.rate is None and not is_trace:
            raise ConfigError("neither rate, trace nor closed; give one of them")

    def _check_numbers(self) -> None:
        limits: tuple[tuple[str, float | None, float, float], ...] = (
            ("rate", self.rate, 1e-3, 1e6),
            ("closed", self.closed, 1, 1e5),
            ("duration_s", self.duration_s, 0.01, 1e6),
            ("warmup_s", self.warmup_s, 0, 1e6),
            ("drain_s", self.drain_s, 0, 1e4),
            ("sla_ms", self.sla_ms, 1e-3, 1e7),
            ("percentile", self.percentile, 1, 99.999),
            ("confidence", self.confidence, 0.5, 0.999999),
            ("seed", self.seed, 0, 2**63),
            ("processes", self.processes, 1, 1024),
            ("max_connections", self.max_connections, self.processes, 1e6),
            ("top_k", self.top_k, 1, 1e9),
            ("timeout_ms", self.timeout_ms, 1e-3, 1e9),
            ("max_lateness_ms", self.max_lateness_ms, 1e-3, 1e7),
        )
        for name, value, least, most in limits:
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{name} {value:g}: {least:g} to {most:g} is allowed")
        if self.closed is not None and not self.processes <= self.closed <= self.max_connections:
            raise ConfigError(
                f"closed {self.closed}: {self.processes} (processes) to {self.max_connections} "
                "(max_connections) is allowed"
            )


class Schedule(msgspec.Struct, frozen=True):
    """When each query of a run arrives and how large it is, shape (Q,) each."""

    times_s: Times
    """From the start of the warm-up, ascending; empty in a closed loop."""
    sizes: Sizes
    """In a closed loop, sizes to go round."""

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.times_s)

    def part(self, index: int, count: int) -> NDArray[np.int64]:
        """Places of the queries that one of `count` processes sends."""
        return np.arange(index, len(self.sizes), count)


CLOSED_SIZES = 4096


def schedule_of(plan: Plan) -> Schedule:
    """The whole schedule of a plan, warm-up included.

    Raises:
        ConfigError: A trace is wrong, has sizes of its own beside those asked for, or no query
            falls into the time that is measured.
    """
    if plan.closed is not None:
        return Schedule(np.empty(0), query_sizes(plan.sizes, CLOSED_SIZES, plan.seed))
    total_s = plan.warmup_seconds + plan.duration_s
    sizes = None
    if plan.arrivals == "trace":
        times, sizes = read_trace(Path(plan.trace), plan.rate)
        times = times[: np.searchsorted(times, total_s, side="left")]
    else:
        assert plan.rate is not None
        times = arrival_times(plan.arrivals, plan.rate, total_s, plan.seed)
    if not len(times) or times[-1] < plan.warmup_seconds:
        raise ConfigError(
            f"no query in {plan.duration_s:g} s after a warm-up of {plan.warmup_seconds:g} s; "
            "raise the rate or the duration, or shorten the warm-up"
        )
    if sizes is None:
        return Schedule(times, query_sizes(plan.sizes, len(times), plan.seed))
    return Schedule(times, sizes[: len(times)])
