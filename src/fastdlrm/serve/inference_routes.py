"""The routes that score: `/infer` of a model, and its `:rank` and `:score`."""

import time

from fastdlrm.contracts.wire import (
    HEADER_LENGTH,
    Infer,
    Outcome,
    decode_infer,
    encode_outcome,
    read_header_length,
)
from fastdlrm.errors import RequestError
from fastdlrm.serve.backend import Backend
from fastdlrm.serve.config import Limits
from fastdlrm.serve.http import Request, Response
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.ranking import decode_rank, decode_score, encode_score

_HEADER_LENGTH = HEADER_LENGTH.encode()
TIMEOUT_HEADER = b"request-timeout-ms"


class InferenceRoutes:
    """Handlers of the routes that score.

    Args:
        backend: Scores.
        limits: What a request may ask for.
        metrics: Where the time of answering is counted.
    """

    def __init__(self, backend: Backend, limits: Limits, metrics: Metrics) -> None:
        self._backend = backend
        self._max_body_bytes = limits.max_body_bytes
        self._metrics = metrics

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{model}[/versions/{version}]/infer."""
        body = await request.body(self._max_body_bytes)
        infer = decode_infer(
            body,
            read_header_length(request.header(_HEADER_LENGTH)),
            model_name=request.model,
            model_version=request.version,
        )
        outcome = await self._answer(infer, request)
        started_ns = time.perf_counter_ns()
        headers, pieces = encode_outcome(outcome, infer)
        response = Response(
            b"".join(pieces),
            content_type=headers.pop("content-type").encode(),
            headers=tuple((name.encode(), value.encode()) for name, value in headers.items()),
        )
        self._responded(outcome, started_ns)
        return response

    async def rank(self, request: Request) -> Response:
        """POST /v1/models/{model}[/versions/{version}]:rank."""
        body = await request.body(self._max_body_bytes)
        query = decode_rank(body, model_name=request.model, model_version=request.version)
        outcome = await self._answer(query.infer, request)
        started_ns = time.perf_counter_ns()
        response = Response(query.encode(outcome))
        self._responded(outcome, started_ns)
        return response

    async def score(self, request: Request) -> Response:
        """POST /v1/models/{model}[/versions/{version}]:score."""
        body = await request.body(self._max_body_bytes)
        infer = decode_score(body, model_name=request.model, model_version=request.version)
        outcome = await self._answer(infer, request)
        started_ns = time.perf_counter_ns()
        response = Response(encode_score(outcome))
        self._responded(outcome, started_ns)
        return response

    async def _answer(self, infer: Infer, request: Request) -> Outcome:
        return await self._backend.infer(
            infer, header_deadline_s(request), arrived_ns=request.arrived_ns
        )

    def _responded(self, outcome: Outcome, started_ns: int) -> None:
        respond = self._metrics.of(outcome.model_name).respond
        respond.observe((time.perf_counter_ns() - started_ns) * 1e-9)


def header_deadline_s(request: Request) -> float | None:
    """The deadline that a request's header names, in time of the event loop; None without it.

    Raises:
        RequestError: It is no positive number.
    """
    value = request.header(TIMEOUT_HEADER)
    if value is None:
        return None
    try:
        timeout_ms = float(value)
    except ValueError:
        timeout_ms = 0.0
    if not 0 < timeout_ms < 1e12:
        raise RequestError(
            f"header {TIMEOUT_HEADER.decode()}: {value[:32].decode('latin-1')!r} is no positive "
            "number of milliseconds"
        )
    waited_s = (time.perf_counter_ns() - request.arrived_ns) * 1e-9
    return time.monotonic() - waited_s + timeout_ms / 1000
