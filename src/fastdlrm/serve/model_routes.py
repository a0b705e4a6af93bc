"""The routes that tell about the server and its models, and those that load and unload versions."""

from typing import TypeVar

import msgspec

from fastdlrm.contracts.server_info import (
    Live,
    ModelReady,
    Ready,
    RepositoryBody,
    RepositoryIndexBody,
)
from fastdlrm.contracts.wire_json import decode_json
from fastdlrm.serve.backend import Backend
from fastdlrm.serve.http import Request, Response, json

MAX_BODY_BYTES = 64 * 1024
T = TypeVar("T")

_index_decoder = msgspec.json.Decoder(RepositoryIndexBody)
_load_decoder = msgspec.json.Decoder(RepositoryBody)


class ModelRoutes:
    """Handlers of these routes.

    Args:
        backend: Knows the answers.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def server(self, request: Request) -> Response:
        """GET /v2."""
        return json(await self._backend.server_metadata())

    async def live(self, request: Request) -> Response:
        """GET /v2/health/live."""
        return json(Live(live=True))

    async def ready(self, request: Request) -> Response:
        """GET /v2/health/ready."""
        ready = await self._backend.is_ready()
        return json(Ready(live=True, ready=ready), 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        """GET /v2/models/{model}."""
        return json(await self._backend.model_metadata(request.model, request.version))

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/{model}/ready."""
        ready = await self._backend.is_model_ready(request.model, request.version)
        answer = ModelReady(name=request.model, ready=ready)
        return json(answer, 200 if ready else 503)

    async def config(self, request: Request) -> Response:
        """GET /v2/models/{model}/config."""
        return json(await self._backend.model_config(request.model, request.version))

    async def statistics(self, request: Request) -> Response:
        """GET /v2/models[/{model}]/stats."""
        return json(await self._backend.statistics(request.model, request.version))

    async def index(self, request: Request) -> Response:
        """POST /v2/repository/index."""
        body = await self._decoded(request, _index_decoder)
        return json(await self._backend.repository_index(ready=body.ready))

    async def load(self, request: Request) -> Response:
        """POST /v2/repository/models/{model}/load."""
        body = await self._decoded(request, _load_decoder)
        await self._backend.load_model(request.model, body.parameters)
        return Response(b"{}")

    async def unload(self, request: Request) -> Response:
        """POST /v2/repository/models/{model}/unload."""
        body = await self._decoded(request, _load_decoder)
        await self._backend.unload_model(request.model, body.parameters)
        return Response(b"{}")

    async def _decoded(self, request: Request, decoder: msgspec.json.Decoder[T]) -> T:
        body = await request.body(MAX_BODY_BYTES)
        return decode_json(body or b"{}", decoder, "request body")
