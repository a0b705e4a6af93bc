"""The routes that score: `/infer` of a model, and its `:rank` and `:score`."""

import asyncio
import time

from fastdlrm.contracts.wire import (
    HEADER_LENGTH,
    decode_infer,
    encode_outcome,
    read_header_length,
)
from fastdlrm.errors import RequestError
from fastdlrm.serve.backend import Backend
from fastdlrm.serve.config import Limits
from fastdlrm.serve.http import Request, Response
from fastdlrm.serve.metrics import Metrics

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
        outcome = await self._backend.infer(
            infer, header_deadline_s(request), arrived_ns=request.arrived_ns
        )
        started_ns = time.perf_counter_ns()
        headers, pieces = encode_outcome(outcome, infer)
        response = Response(
            b"".join(pieces),
            content_type=headers.pop("content-type").encode(),
            headers=tuple((name.encode(), value.encode()) for name, value in headers.items()),
        )
        self._metrics.of(outcome.model_name).respond.observe(
            (time.perf_counter_ns() - started_ns) * 1e-9
        )
        return response


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
    return asyncio.get_running_loop().time() - waited_s + timeout_ms / 1000
