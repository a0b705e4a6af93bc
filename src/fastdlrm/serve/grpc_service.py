"""The Open Inference Protocol over gRPC: the service's methods over an asynchronous backend.

Invariants: a request's bytes are parsed here, so that damaged ones are INVALID_ARGUMENT with words;
every error has the status of its class (`STATUS`), and an error that is not the project's own is
logged and told in one line; an answer's tensors are raw, unless the request's were typed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from fastdlrm.contracts.server_info import (
    ModelConfig,
    ModelMetadata,
    RepositoryEntry,
    ServerMetadata,
    Statistics,
)
from fastdlrm.contracts.wire import Infer, Outcome
from fastdlrm.errors import (
    DeadlineExceeded,
    FastDLRMError,
    NotFound,
    Overloaded,
    RequestError,
    ServeError,
)
from fastdlrm.serve.grpc_health import health_handlers
from fastdlrm.serve.grpc_messages import (
    METHODS,
    SERVICE,
    Message,
    Method,
    StreamResponse,
    infer_of,
    message_of,
    parse,
    response_of,
    values_of,
)

Context = Any
"""grpc.aio.ServicerContext."""

STATUS: tuple[tuple[type[FastDLRMError], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
)
"""Statuses of errors, subclasses first; what is in none of them is INTERNAL."""
OPEN_METHODS = frozenset(("ServerLive", "ServerReady"))
"""Answered without a token: what probes ask."""
MAX_DETAILS = 2000
"""Characters of an error's text; a status travels in headers, whose size is bounded."""
RETRY_AFTER = "grpc-retry-pushback-ms"
"""Metadata of a shed request, in milliseconds; clients that retry by policy obey it."""

LOGGER = logging.getLogger(__name__)


class Backend(Protocol):
    """What answers the service's methods; each may raise any FastDLRMError."""

    async def infer(self, infer: Infer, deadline_s: float | None) -> Outcome:
        """Answer a request; `deadline_s` is the call's, in time of the event loop."""

    async def is_live(self) -> bool:
        """Whether the server answers at all."""

    async def is_ready(self) -> bool:
        """Whether all models are ready."""

    async def is_model_ready(self, name: str, version: str) -> bool:
        """Whether a model is; an empty version stands for the one in force."""

    async def server_metadata(self) -> ServerMetadata:
        """What the server is."""

    async def model_metadata(self, name: str, version: str) -> ModelMetadata:
        """What a model takes and gives."""

    async def model_config(self, name: str, version: str) -> ModelConfig:
        """The same, as Triton writes it."""

    async def statistics(self, name: str, version: str) -> Statistics:
        """Of one model, or of all where the name is empty."""

    async def repository_index(self, *, ready: bool) -> Sequence[RepositoryEntry]:
        """All versions of all models, or those that are ready."""

    async def load_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load or reload a model; returns when it serves."""

    async def unload_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Unload a model; returns when it is gone."""


class GrpcService:
    """Handlers of the service's methods.

    Args:
        backend: What answers.
        allows: Whether the metadata `authorization` of a call (None = absent) opens the server.
        answered: Told of every answer: method and name of its status, as "OK".
    """

    def __init__(
        self,
        backend: Backend,
        *,
        allows: Callable[[bytes | None], bool] | None = None,
        answered: Callable[[str, str], None] | None = None,
    ) -> None:
        self._backend = backend
        self._allows = allows
        self._answered = answered
        self._answers: dict[str, Callable[[Message, Context], Awaitable[Message]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes: the service, and its health."""
        methods = {}
        for name, method in METHODS.items():
            if method.is_stream:
                methods[name] = grpc.stream_stream_rpc_method_handler(
                    self._stream, response_serializer=method.response.SerializeToString
                )
            else:
                methods[name] = grpc.unary_unary_rpc_method_handler(
                    self._unary(method), response_serializer=method.response.SerializeToString
                )
        return (
            grpc.method_handlers_generic_handler(SERVICE, methods),
            health_handlers(SERVICE, self._backend.is_ready),
        )

    def _unary(self, method: Method) -> Callable[[bytes, Context], Awaitable[Message]]:
        answer = self._answers[method.name]

        async def handle(data: bytes, context: Context) -> Message:
            try:
                self._check_token(method.name, context)
                response = await answer(parse(method.request, data), context)
            except Exception as error:
                await self._abort(method.name, error, context)
                raise
            self._count(method.name, "OK")
            return response

        return handle

    async def _stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[Message]:
        """Answer the requests of a stream one after the other; an error ends none but its own."""
        name = "ModelStreamInfer"
        try:
            self._check_token(name, context)
        except RequestError as error:
            await self._abort(name, error, context)
        async for data in requests:
            request_id = ""
            try:
                request = parse(METHODS[name].request, data)
                request_id = request.id
                response = StreamResponse(infer_response=await self._infer(request, context))
                self._count(name, "OK")
            except Exception as error:  # noqa: BLE001 as for single calls
                code, text = status_of(error)
                self._count(name, code.name)
                response = StreamResponse(error_message=text, infer_response={"id": request_id})
            yield response

    def _check_token(self, name: str, context: Context) -> None:
        if self._allows is None or name in OPEN_METHODS:
            return
        values = [value for key, value in context.invocation_metadata() if key == "authorization"]
        found = values[0] if values else None
        if not self._allows(found.encode() if isinstance(found, str) else found):
            raise Unauthenticated(
                "the bearer token is missing or wrong; send the metadata authorization: "
                "Bearer TOKEN"
            )

    async def _abort(self, name: str, error: Exception, context: Context) -> None:
        code, text = status_of(error)
        self._count(name, code.name)
        metadata: tuple[tuple[str, str], ...] = ()
        if isinstance(error, Overloaded):
            metadata = ((RETRY_AFTER, str(round(error.retry_after_s * 1000))),)
        await context.abort(code, text, metadata)

    def _count(self, name: str, status: str) -> None:
        if self._answered is not None:
            self._answered(name, status)

    async def _infer(self, request: Message, context: Context) -> Message:
        infer = infer_of(request)
        remaining_s = context.time_remaining()
        deadline_s = None
        if remaining_s is not None:
            deadline_s = asyncio.get_running_loop().time() + remaining_s
        outcome = await self._backend.infer(infer, deadline_s)
        is_typed = not request.raw_input_contents and len(request.inputs) > 0
        return response_of(outcome, infer, is_raw=not is_typed)

    async def _server_live(self, request: Message, context: Context) -> Message:
        return METHODS["ServerLive"].response(live=await self._backend.is_live())

    async def _server_ready(self, request: Message, context: Context) -> Message:
        return METHODS["ServerReady"].response(ready=await self._backend.is_ready())

    async def _model_ready(self, request: Message, context: Context) -> Message:
        ready = await self._backend.is_model_ready(request.name, request.version)
        return METHODS["ModelReady"].response(ready=ready)

    async def _server_metadata(self, request: Message, context: Context) -> Message:
        found = await self._backend.server_metadata()
        return message_of(METHODS["ServerMetadata"].response, found)

    async def _model_metadata(self, request: Message, context: Context) -> Message:
        found = await self._backend.model_metadata(request.name, request.version)
        return message_of(METHODS["ModelMetadata"].response, found)

    async def _model_config(self, request: Message, context: Context) -> Message:
        found = await self._backend.model_config(request.name, request.version)
        return message_of(METHODS["ModelConfig"].response, {"config": found})

    async def _statistics(self, request: Message, context: Context) -> Message:
        found = await self._backend.statistics(request.name, request.version)
        return message_of(METHODS["ModelStatistics"].response, found)

    async def _repository_index(self, request: Message, context: Context) -> Message:
        found = await self._backend.repository_index(ready=request.ready)
        return message_of(METHODS["RepositoryIndex"].response, {"models": found})

    async def _load(self, request: Message, context: Context) -> Message:
        await self._backend.load_model(request.model_name, values_of(request.parameters))
        return METHODS["RepositoryModelLoad"].response()

    async def _unload(self, request: Message, context: Context) -> Message:
        await self._backend.unload_model(request.model_name, values_of(request.parameters))
        return METHODS["RepositoryModelUnload"].response()


class Unauthenticated(RequestError):
    """A call without the server's token."""


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and text of an error; one that is not the project's own is logged."""
    text = str(error)[:MAX_DETAILS]
    if isinstance(error, Unauthenticated):
        return grpc.StatusCode.UNAUTHENTICATED, text
    for kind, code in STATUS:
        if isinstance(error, kind):
            return code, text
    if isinstance(error, FastDLRMError):
        return grpc.StatusCode.INTERNAL, text
    LOGGER.error("an answer by gRPC failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, "the server failed; its log says how"


def make_server(
    service: GrpcService, *, max_message_bytes: int, max_concurrent: int | None = None
) -> grpc.aio.Server:
    """A server in the running event loop, not yet listening.

    Args:
        service: What answers.
        max_message_bytes: Largest request; a larger one is RESOURCE_EXHAUSTED, unread.
        max_concurrent: Calls at the same time, more are RESOURCE_EXHAUSTED; None = no bound.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a share of its calls
        ],
        maximum_concurrent_rpcs=max_concurrent,
    )
    server.add_generic_rpc_handlers(service.handlers())
    return server


def listen(server: grpc.aio.Server, address: str, tls: tuple[bytes, bytes] | None = None) -> int:
    """Bind a server to "host:port" and return the port; 0 takes a free one.

    Args:
        server: The server.
        address: Where it listens.
        tls: Private key and certificate chain, PEM; None: plain text.

    Raises:
        ServeError: The address cannot be bound.
    """
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, grpc.ssl_server_credentials([tls]))
    except RuntimeError as error:
        raise ServeError(
            f"gRPC cannot listen at {address}: {error}; is another server there?"
        ) from None
    return int(port)
