"""The ASGI application: finds the route, asks for the token, turns errors to answers.

Invariants: every request is answered once, an error as {"error": text} with its status; an error
that is nobody's fault but this code's is logged whole and told in one line.
"""

import asyncio
import random
import time
import traceback

from fastdlrm.contracts.wire import encode_error
from fastdlrm.errors import (
    DeadlineExceeded,
    FastDLRMError,
    NotFound,
    Overloaded,
    RequestError,
)
from fastdlrm.serve.access import Access
from fastdlrm.serve.http import CLOSE, BodyBudget, Receive, Refused, Request, Response, Scope, Send
from fastdlrm.serve.log import EventLog
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.protocol import CONNECTION
from fastdlrm.serve.routes import RouteTable

_STATUS: tuple[tuple[type[FastDLRMError], int], ...] = (
    (NotFound, 404),
    (Overloaded, 503),
    (DeadlineExceeded, 504),
    (RequestError, 400),
)
_UNKNOWN = "unknown"


class App:
    """ASGI application.

    Args:
        routes: What answers.
        access: Who may ask.
        metrics: Where answers are counted.
        budget: Bounds what bodies hold.
        log: Where unforeseen errors and (a share of) requests go.
        access_share: Share of requests that leave a line in the log.

    Attributes:
        num_in_flight: Requests that are being answered.
    """

    def __init__(
        self,
        routes: RouteTable,
        access: Access,
        metrics: Metrics,
        log: EventLog,
        *,
        budget: BodyBudget,
        access_share: float = 0.0,
    ) -> None:
        self.num_in_flight = 0
        self._routes = routes
        self._access = access
        self._metrics = metrics
        self._log = log
        self._budget = budget
        self._access_share = access_share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        self.num_in_flight += 1
        request = Request(scope, receive, self._budget)
        connection = scope.get(CONNECTION)
        if connection is not None:
            connection.answering = asyncio.current_task()
        name = _UNKNOWN
        try:
            try:
                route = self._routes.find(request)
                name = route.name
                self._require_token(request, route.is_open)
                response = await route.handler(request)
            except FastDLRMError as problem:
                response = answer_of(problem)
            except asyncio.CancelledError:
                if connection is not None and connection.is_gone:
                    self._metrics.answered("http", name, "499")
                    return
                response = answer_of(Overloaded("the server shuts down; ask another one"))
            except Exception as problem:  # noqa: BLE001 the last border: the client gets an answer
                self._log(
                    "unforeseen_error",
                    level="error",
                    route=name,
                    problem=repr(problem),
                    trace="".join(traceback.format_exception(problem)),
                )
                response = answer_of(problem)
            if not request.is_read and request.header(b"expect") is not None:
                response.headers += (CLOSE,)  # the body may or may not follow
            await response.send(send)
            self._metrics.answered("http", name, str(response.status))
            if self._access_share and random.random() < self._access_share:
                self._log_access(request, name, response)
        finally:
            self.num_in_flight -= 1
            request.release()

    def _require_token(self, request: Request, is_open: bool) -> None:
        if is_open or self._access.is_open:
            return
        if not self._access.allows(request.header(b"authorization")):
            raise Refused(
                401,
                "the bearer token is missing or wrong; send the header Authorization: Bearer TOKEN",
                ((b"www-authenticate", b"Bearer"),),
            )

    def _log_access(self, request: Request, route: str, response: Response) -> None:
        client = request.scope.get("client")
        self._log(
            "request",
            route=route,
            method=request.scope["method"],
            path=request.scope["path"],
            status=response.status,
            answer_bytes=len(response.body),
            ms=round((time.perf_counter_ns() - request.arrived_ns) / 1e6, 3),
            client=client[0] if client else "",
        )


def answer_of(problem: BaseException) -> Response:
    """The response that tells an error."""
    if isinstance(problem, Refused):
        return Response(encode_error(str(problem)), status=problem.status, headers=problem.headers)
    status = next((code for kind, code in _STATUS if isinstance(problem, kind)), 500)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(problem, Overloaded):
        headers = ((b"retry-after", b"%d" % max(1, round(problem.retry_after_s))),)
    if isinstance(problem, FastDLRMError):
        return Response(encode_error(str(problem)), status=status, headers=headers)
    text = "the server failed on this request; its log says why"
    return Response(encode_error(text), status=500)
