"""Ports: uvicorn's settings, the listening socket, TLS."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from fastdlrm.errors import ConfigError
from fastdlrm.serve.app import App
from fastdlrm.serve.config import Http, Security, ServeConfig
from fastdlrm.serve.protocol import Connection, ConnectionLimits


class HttpServer(uvicorn.Server):
    """uvicorn's server, which leaves signals alone: they are `Server`'s."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def http_config(app: App, config: ServeConfig) -> uvicorn.Config:
    """uvicorn's settings.

    Raises:
        ConfigError: A file of TLS cannot be used.
    """
    http, security = config.http, config.security
    limits = ConnectionLimits(
        max_connections=http.max_connections,
        max_header_bytes=http.max_header_bytes,
        header_timeout_s=http.header_timeout_s,
        body_timeout_s=http.body_timeout_s,
    )
    made = uvicorn.Config(
        app,
        http=type("ServedConnection", (Connection,), {"limits": limits}),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=http.backlog,
        timeout_keep_alive=http.keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=config.shutdown.drain_s,  # type: ignore[arg-type]
        ssl_certfile=security.tls_certificate or None,
        ssl_keyfile=security.tls_key or None,
    )
    try:
        made.load()
    except (OSError, ssl.SSLError) as problem:
        raise tls_problem(security, problem) from problem
    return made


def tls_problem(security: Security, problem: Exception) -> ConfigError:
    """The error of files of TLS that cannot be used."""
    return ConfigError(
        f"security.tls_certificate {security.tls_certificate!r}, tls_key {security.tls_key!r}: "
        f"{problem}; both must be PEM files that belong together"
    )


def tls_files(security: Security) -> tuple[bytes, bytes] | None:
    """Private key and certificate chain; None where no TLS is spoken."""
    if not security.tls_key:
        return None
    return Path(security.tls_key).read_bytes(), Path(security.tls_certificate).read_bytes()


def listen(http: Http) -> socket.socket:
    """The socket of the HTTP port.

    Raises:
        ConfigError: The address cannot be listened at.
    """
    try:
        family = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((http.host, http.port), family=family, backlog=http.backlog)
    except OSError as problem:
        raise ConfigError(
            f"http.host {http.host!r}, http.port {http.port}: cannot listen there: {problem}; "
            "choose another, or port 0 for a free one"
        ) from problem
