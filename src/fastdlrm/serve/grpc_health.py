"""gRPC's standard health service, grpc.health.v1.Health/Check: what orchestrators' probes ask.

Its two messages have one field each, numbered 1: a string and an enum. On the wire they are
protobuf's own StringValue and Int32Value, which stand for them here.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

HEALTH_SERVICE = "grpc.health.v1.Health"
SERVING = 1
NOT_SERVING = 2


def health_handlers(
    service: str, is_ready: Callable[[], Awaitable[bool]]
) -> grpc.GenericRpcHandler:
    """Handlers that answer for the whole server (an empty name) and for one service.

    Args:
        service: The service's full name.
        is_ready: Whether it takes requests.
    """

    async def check(data: bytes, context: Any) -> Any:
        try:
            asked = StringValue.FromString(data).value
        except DecodeError as error:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"not a message HealthCheckRequest ({error})"
            )
            raise
        if asked not in ("", service):
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service {asked[:200]!r}; ask for {service!r} or for the server: ''",
            )
        return Int32Value(value=SERVING if await is_ready() else NOT_SERVING)

    handler = grpc.unary_unary_rpc_method_handler(
        check, response_serializer=Int32Value.SerializeToString
    )
    return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": handler})
