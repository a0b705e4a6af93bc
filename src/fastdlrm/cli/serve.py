"""`fastdlrm serve`: exported models -> HTTP and gRPC."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fastdlrm.cli.options import Overrides

FLAGS = {
    "host": "http.host",
    "port": "http.port",
    "grpc_port": "grpc.port",
    "workers": "workers.count",
    "device": "workers.device",
}
"""Key of the config that each flag sets."""


def serve(
    models: Annotated[
        Path, typer.Argument(help="Repository MODELS/NAME/VERSION, or one exported model.")
    ],
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; 127.0.0.1 where none is named.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port (8000); 0 takes a free one.")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port (8001); 0 takes a free one.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that compute (as many as there are cores).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="TOML file; every key has a default.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Answer requests for scores until SIGTERM or Ctrl-C.

    Speaks the Open Inference Protocol (KServe v2) over HTTP and gRPC, and routes of its own for
    ranking; shows itself at the HTTP port's / and describes itself at /docs. Events are written to
    stderr, one JSON line each.

        fastdlrm serve MODELS --workers 4
    """
    from fastdlrm.bench.host import usable_cores
    from fastdlrm.config import load_over_defaults
    from fastdlrm.serve.access import read_token
    from fastdlrm.serve.config import ServeConfig
    from fastdlrm.serve.server import serve as run
    from fastdlrm.serve.start import Starter

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC writes to stderr, and not JSON
    given = {
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "workers": workers,
        "device": device,
    }
    flags = [f"{FLAGS[name]}={value}" for name, value in given.items() if value is not None]
    chosen = load_over_defaults(config, ServeConfig, [*(overrides or ()), *flags])
    if not chosen.workers.count:
        counted = msgspec.structs.replace(chosen.workers, count=usable_cores())
        chosen = msgspec.structs.replace(chosen, workers=counted)
    security = chosen.security
    token = read_token(
        security.token_file, security.token_env, os.environ.get(security.token_env or "")
    )
    run(models, chosen, partial(Starter, chosen), token=token)
