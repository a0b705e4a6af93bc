"""The routes for people and machines that look on: page, documentation, status, metrics."""

from collections.abc import Callable
from importlib import resources
from urllib.parse import parse_qs

import msgspec

from fastdlrm.errors import RequestError
from fastdlrm.serve.http import HTML, TEXT, Request, Response, json
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.openapi import document
from fastdlrm.serve.repository import Repository
from fastdlrm.serve.status import Status

_NO_STORE = ((b"cache-control", b"no-store"),)
_PAGE = (
    (b"cache-control", b"no-cache"),
    (b"x-content-type-options", b"nosniff"),
    (
        b"content-security-policy",
        b"default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; "
        b"style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    ),
)


class PageRoutes:
    """Handlers of these routes.

    Args:
        repository: The models.
        metrics: All that is counted.
        status: Gives the server's status, with the seconds that ended after a time.
    """

    def __init__(
        self, repository: Repository, metrics: Metrics, status: Callable[[float], Status]
    ) -> None:
        self._repository = repository
        self._metrics = metrics
        self._status = status
        self._page = (
            _read("page.html")
            .replace(b"@@style@@", _read("page.css"))
            .replace(b"@@script@@", _read("page.js"))
        )
        self._docs = _read("docs.html")

    async def page(self, request: Request) -> Response:
        """GET /."""
        return Response(self._page, content_type=HTML, headers=_PAGE)

    async def docs(self, request: Request) -> Response:
        """GET /docs."""
        return Response(self._docs, content_type=HTML, headers=_PAGE)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        serving = self._repository.serving()
        if not serving or serving[0].state != "READY":
            return json(document())
        return json(document(serving[0].name, serving[0].engine.examples))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self._metrics.text(), content_type=TEXT, headers=_NO_STORE)

    async def status(self, request: Request) -> Response:
        """GET /v1/status."""
        since = since_of(request.scope.get("query_string", b""))
        return Response(msgspec.json.encode(self._status(since)), headers=_NO_STORE)

    async def example(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        version = self._repository.get(request.model, request.version)
        engine = version.engine
        return json(
            {
                "model_name": version.name,
                "model_version": version.number,
                "examples": list(engine.examples),
            }
        )


def since_of(query: bytes) -> float:
    """The time in a query string "since=..."; 0 where there is none.

    Raises:
        RequestError: It is no number.
    """
    values = parse_qs(query.decode("latin-1")).get("since")
    if not values:
        return 0.0
    try:
        since = float(values[-1])
    except ValueError as problem:
        raise RequestError(
            f"parameter since: {values[-1][:32]!r} is no number of seconds since 1970"
        ) from problem
    return since


def _read(name: str) -> bytes:
    return resources.files("fastdlrm.serve").joinpath(name).read_bytes()
