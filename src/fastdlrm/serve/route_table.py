"""Every path of the server and what answers it."""

from collections.abc import Callable

from fastdlrm.serve.backend import Backend
from fastdlrm.serve.config import ServeConfig
from fastdlrm.serve.inference_routes import InferenceRoutes
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.model_routes import ModelRoutes
from fastdlrm.serve.page_routes import PageRoutes
from fastdlrm.serve.repository import Repository
from fastdlrm.serve.routes import Route, RouteTable
from fastdlrm.serve.status import Status


def all_routes(
    backend: Backend,
    repository: Repository,
    metrics: Metrics,
    config: ServeConfig,
    *,
    status: Callable[[float], Status],
) -> RouteTable:
    """All routes.

    Args:
        backend: Answers what both protocols are asked.
        repository: The models.
        metrics: What is counted.
        config: How the server runs.
        status: Gives the server's status, with the seconds that ended after a time.
    """
    models = ModelRoutes(backend)
    inference = InferenceRoutes(backend, config.limits, metrics)
    pages = PageRoutes(repository, metrics, status)
    is_open = config.security.open_health
    server = Route("server", models.server)
    return RouteTable(
        fixed={
            "/v2": server,
            "/v2/": server,
            "/v2/health/live": Route("live", models.live, is_open=is_open),
            "/v2/health/ready": Route("ready", models.ready, is_open=is_open),
            "/v2/models/stats": Route("statistics", models.statistics),
            "/v2/repository/index": Route("index", models.index, "POST"),
            "/v1/status": Route("status", pages.status),
            "/metrics": Route("metrics", pages.metrics, is_open=is_open),
            "/openapi.json": Route("openapi", pages.openapi, is_open=True),
            "/docs": Route("docs", pages.docs, is_open=True),
            "/": Route("page", pages.page, is_open=True),
        },
        of_model={
            "": Route("model", models.model),
            "ready": Route("model_ready", models.model_ready, is_open=is_open),
            "config": Route("config", models.config),
            "stats": Route("statistics", models.statistics),
            "infer": Route("infer", inference.infer, "POST"),
        },
        native={
            "": Route("example", pages.example),
            "rank": Route("rank", inference.rank, "POST"),
            "score": Route("score", inference.score, "POST"),
        },
        of_repository={
            "load": Route("load", models.load, "POST"),
            "unload": Route("unload", models.unload, "POST"),
        },
    )
