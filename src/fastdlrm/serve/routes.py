"""Which handler answers which path.

Invariant: a path is found by splitting it and looking it up; its pieces become a request's `model`
and `version` and nothing else, so a client's text is never a key of anything that grows.
"""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from fastdlrm.serve.http import Refused, Request, Response

Handler = Callable[[Request], Awaitable[Response]]


class Route(msgspec.Struct, frozen=True):
    """What answers a path."""

    name: str
    """As metrics show it; one of a fixed set."""
    handler: Handler
    method: str = "GET"
    is_open: bool = False
    """Whether it is answered without the token."""


class RouteTable:
    """All routes of a server.

    Args:
        fixed: By whole path.
        of_model: By "/v2/models/{model}" and what follows it, versions aside: "", "infer", ...
        native: By what follows ":" in "/v1/models/{model}:..."; "" where nothing does.
        of_repository: By what follows "/v2/repository/models/{model}/".
    """

    def __init__(
        self,
        *,
        fixed: Mapping[str, Route],
        of_model: Mapping[str, Route],
        native: Mapping[str, Route],
        of_repository: Mapping[str, Route],
    ) -> None:
        self.fixed = fixed
        self.of_model = of_model
        self.native = native
        self.of_repository = of_repository

    def find(self, request: Request) -> Route:
        """The route of a request; sets the request's `model` and `version`.

        Raises:
            Refused: 404 no such path, 405 another method.
        """
        path: str = request.scope["path"]
        route = self.fixed.get(path) or self._by_pieces(path, request)
        if route is None:
            raise Refused(404, f"no path {path[:200]!r}; GET /docs lists all of them")
        method: str = request.scope["method"]
        if method != route.method and not (method == "HEAD" and route.method == "GET"):
            allowed = "GET, HEAD" if route.method == "GET" else route.method
            raise Refused(
                405,
                f"{method[:20]} {path[:200]!r}: {allowed} is allowed",
                ((b"allow", allowed.encode()),),
            )
        return route

    def _by_pieces(self, path: str, request: Request) -> Route | None:
        pieces = path.split("/")
        match pieces:
            case ["", "v2", "models", model, *rest]:
                table = self.of_model
                if rest and rest[0] == "versions" and len(rest) > 1:
                    request.version, rest = rest[1], rest[2:]
                verb = rest[0] if rest else ""
                if len(rest) > 1 or (rest and not verb):
                    return None
            case ["", "v1", "models", last]:
                table = self.native
                model, _, verb = last.partition(":")
            case ["", "v1", "models", model, "versions", last]:
                table = self.native
                request.version, _, verb = last.partition(":")
            case ["", "v2", "repository", "models", model, verb]:
                table = self.of_repository
            case _:
                return None
        request.model = model
        return table.get(verb) if model else None
