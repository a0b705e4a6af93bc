"""How a server runs: every key has a default, so a config file may name just what differs.

Invariants: a config that decodes can be served with; the bearer token itself is never in it.
"""

from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError

Program = Literal["auto", "eager", "aoti", "onnx"]
"""What computes the dense part: auto takes what the exported model names as its own."""


def _require_port(key: str, port: int) -> None:
    if not 0 <= port <= 65535:
        raise ConfigError(f"{key} is {port}; 0 to 65535 is allowed")


def _require_positive(section: str, **values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ConfigError(f"{section}.{key} is {value}; more than 0 is allowed")


class Http(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP port."""

    host: str = "127.0.0.1"
    """Address to listen at, for HTTP and gRPC; "0.0.0.0" for all of the machine's."""
    port: int = 8000
    """0 takes a free one; the line "started" of the log names it."""
    max_connections: int = 1024
    """Open at once; one more is answered 503."""
    keep_alive_s: float = 75.0
    """How long an idle connection stays open; more than that of a load balancer before it."""
    header_timeout_s: float = 10.0
    """From the first byte of a request to the end of its headers."""
    body_timeout_s: float = 30.0
    """From the end of the headers to the end of the body; later is answered 408."""
    max_header_bytes: int = 32 * 1024
    """Names and values of one request's headers, and its path; more is answered 431."""
    backlog: int = 2048
    """Connections the system holds until the server takes them."""

    def __post_init__(self) -> None:
        _require_port("http.port", self.port)
        _require_positive(
            "http",
            max_connections=self.max_connections,
            keep_alive_s=self.keep_alive_s,
            header_timeout_s=self.header_timeout_s,
            body_timeout_s=self.body_timeout_s,
            max_header_bytes=self.max_header_bytes,
            backlog=self.backlog,
        )


class Grpc(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gRPC port."""

    enabled: bool = True
    """Whether gRPC is spoken beside HTTP."""
    port: int = 8001
    """0 takes a free one; the line "started" of the log names it."""

    def __post_init__(self) -> None:
        _require_port("grpc.port", self.port)


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may ask for."""

    max_body_bytes: int = 16 * 2**20
    """Of a body, after decompression too; more is answered 413. A large body of JSON holds up the
    requests beside it while it is read."""
    max_bodies_bytes: int = 512 * 2**20
    """Of all large bodies together, while they come and are answered; more is answered 503."""
    max_rows: int = 10_000
    """Samples of one query; more is answered 400."""
    default_timeout_ms: float = 1000.0
    """Deadline of a request that names none."""
    max_timeout_ms: float = 60_000.0
    """A request that asks for more time gets this."""

    def __post_init__(self) -> None:
        _require_positive(
            "limits",
            max_body_bytes=self.max_body_bytes,
            max_bodies_bytes=self.max_bodies_bytes,
            max_rows=self.max_rows,
            default_timeout_ms=self.default_timeout_ms,
            max_timeout_ms=self.max_timeout_ms,
        )


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How queries become batches."""

    max_batch_rows: int = 256
    """Larger queries are split, smaller ones merged up to it. More: throughput; fewer: latency."""
    max_queue_delay_ms: float = 0.0
    """How long a query may wait for others while a worker idles; 0: not at all."""
    arena_bytes: int = 256 * 2**20
    """Shared memory for requests that wait or are computed, of each version; full: 503."""

    def __post_init__(self) -> None:
        _require_positive(
            "batching", max_batch_rows=self.max_batch_rows, arena_bytes=self.arena_bytes
        )
        if self.max_queue_delay_ms < 0:
            raise ConfigError(
                f"batching.max_queue_delay_ms is {self.max_queue_delay_ms}; 0 or more is allowed"
            )


class Workers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processes that compute, of each version served."""

    count: int = 0
    """0: as many as there are cores for this process."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    program: Program = "auto"
    """What computes the dense part."""
    start_timeout_s: float = 300.0
    """For a version to be loaded, checked and warm; later it is given up."""

    def __post_init__(self) -> None:
        _require_positive("workers", start_timeout_s=self.start_timeout_s)
        if self.count < 0:
            raise ConfigError(
                f"workers.count is {self.count}; 1 or more, or 0 for as many as there are cores"
            )


class Offload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers of another kind that large queries go to whole, beside those of [workers].

    Source: Gupta et al. 2020, DeepRecSys, arXiv:2001.02772, section IV.
    """

    min_rows: int = 0
    """Samples of a query from which on it goes to them; 0: none does, and there are none."""
    max_batch_rows: int = 4096
    """Larger queries are split, smaller ones merged up to it."""
    device: str = "cuda"
    """cpu, cuda or cuda:N."""
    count: int = 1
    """Of each version served."""
    program: Program = "auto"
    """What computes the dense part."""

    def __post_init__(self) -> None:
        _require_positive("offload", count=self.count, max_batch_rows=self.max_batch_rows)
        if self.min_rows < 0:
            raise ConfigError(
                f"offload.min_rows is {self.min_rows}; 1 or more, or 0 for no offloading"
            )


class Security(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may ask; empty values switch a thing off."""

    token_file: str = ""
    """File that holds the bearer token."""
    token_env: str = ""
    """Name of the environment variable that holds the bearer token."""
    open_health: bool = True
    """Whether health and metrics are answered without the token, as probes and scrapers ask."""
    tls_certificate: str = ""
    """PEM file with the certificate chain, for HTTP and gRPC."""
    tls_key: str = ""
    """PEM file with the private key."""

    def __post_init__(self) -> None:
        if self.token_file and self.token_env:
            raise ConfigError(
                "security: token_file and token_env are both set; the token comes from one of them"
            )
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError(
                "security: TLS needs both tls_certificate and tls_key; one of them is empty"
            )


class Watch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the repository on disk is followed."""

    every_s: float = 1.0
    """Pause between looks for a `current` that moved, for new versions and for deltas; 0: never,
    versions are loaded over the protocol alone."""

    def __post_init__(self) -> None:
        if self.every_s < 0:
            raise ConfigError(f"watch.every_s is {self.every_s}; 0 or more is allowed")


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What follows SIGTERM: not ready, grace, no new connections, drain, exit."""

    grace_s: float = 0.0
    """Time served on as "not ready", for load balancers to see it. In Kubernetes 5 or more."""
    drain_s: float = 20.0
    """For requests under way to be answered, at the end and when a version is replaced; then they
    are cut off."""

    def __post_init__(self) -> None:
        _require_positive("shutdown", drain_s=self.drain_s)
        if self.grace_s < 0:
            raise ConfigError(f"shutdown.grace_s is {self.grace_s}; 0 or more is allowed")


class Log(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The log on stderr, one JSON line an event."""

    access_share: float = 0.0
    """Share of requests that leave a line, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.access_share <= 1:
            raise ConfigError(f"log.access_share is {self.access_share}; 0 to 1 is allowed")


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a server's choices."""

    http: Http = Http()
    grpc: Grpc = Grpc()
    limits: Limits = Limits()
    batching: Batching = Batching()
    workers: Workers = Workers()
    offload: Offload = Offload()
    security: Security = Security()
    watch: Watch = Watch()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()
    models: tuple[str, ...] = ()
    """Names of the repository served from the start; empty: all of them."""

    def __post_init__(self) -> None:
        if self.grpc.enabled and self.grpc.port == self.http.port != 0:
            raise ConfigError(
                f"http.port and grpc.port are both {self.http.port}; each needs its own"
            )
        if self.limits.default_timeout_ms > self.limits.max_timeout_ms:
            raise ConfigError(
                f"limits.default_timeout_ms {self.limits.default_timeout_ms} is above "
                f"limits.max_timeout_ms {self.limits.max_timeout_ms}; lower the one or raise the "
                "other"
            )
