"""`fastdlrm load`: drive a server at a rate, and say what latency it kept."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from fastdlrm.cli.options import Json

if TYPE_CHECKING:
    from fastdlrm.load.plan import Plan


def load(
    url: Annotated[str, typer.Argument(help="Of the server: http://HOST:PORT.")],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    version: Annotated[str, typer.Option(help="Of the model; the one in force if absent.")] = "",
    rate: Annotated[
        float | None,
        typer.Option(help="Queries a second, sent on schedule (open loop); where a search starts."),
    ] = None,
    closed: Annotated[
        int | None, typer.Option(help="Queries in flight, each answer sends the next.")
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="exponential, uniform or reference_poisson_ms.")
    ] = "exponential",
    trace: Annotated[
        str, typer.Option(help="File of arrival times in seconds, a line each; --rate stretches.")
    ] = "",
    sizes: Annotated[
        str,
        typer.Option(
            help="Samples a query: production, heavy, lognormal[:MU,SIGMA], normal[:MEAN,SD], "
            "fixed:N, file:PATH."
        ),
    ] = "production",
    duration: Annotated[float, typer.Option(help="Seconds that are measured.")] = 30.0,
    warmup: Annotated[
        float | None,
        typer.Option(help="Seconds before; 5 s and as long as 500 queries take if absent."),
    ] = None,
    drain: Annotated[float, typer.Option(help="Seconds that late answers are waited for.")] = 5.0,
    sla_ms: Annotated[
        float | None, typer.Option(help="Latency that --percentile percent must keep.")
    ] = None,
    percentile: Annotated[float, typer.Option(help="Of the SLA.")] = 99.0,
    confidence: Annotated[float, typer.Option(help="With which the SLA is shown kept.")] = 0.99,
    search: Annotated[
        bool, typer.Option("--search", help="Find the highest rate that keeps the SLA.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Of the search, each with its own seeds.")] = 1,
    loadgen: Annotated[
        str, typer.Option(help="server or offline: by MLPerf's LoadGen instead.")
    ] = "",
    rows: Annotated[
        str,
        typer.Option(help="Raw rows to send: server, random, or a .arrow, .parquet, .jsonl file."),
    ] = "server",
    user_columns: Annotated[
        str, typer.Option(help="Columns of the user, with commas: sent once a query.")
    ] = "",
    body: Annotated[str, typer.Option(help="binary, json or rank (POST :rank).")] = "binary",
    top_k: Annotated[int | None, typer.Option(help="Ask for the best samples alone.")] = None,
    timeout_ms: Annotated[
        float | None, typer.Option(help="Deadline that each request carries.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="'NAME: VALUE' sent with each request. Repeatable.")
    ] = None,
    processes: Annotated[int, typer.Option(help="That send; one a core.")] = 1,
    max_connections: Annotated[int, typer.Option(help="Of all processes.")] = 2048,
    max_lateness_ms: Annotated[
        float | None, typer.Option(help="p99 of late sending beyond which the run is invalid.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, sizes and rows.")] = 0,
    samples: Annotated[
        Path | None, typer.Option(help="Arrow file to write, with the times of every query.")
    ] = None,
    json: Json = False,
) -> None:
    """Send queries to a server of the Open Inference Protocol, and report their latency.

    Queries are sent when the schedule says, whatever the server does, and latency counts from then.

        fastdlrm load http://127.0.0.1:8000 --model m --rate 200 --sla-ms 20
        fastdlrm load http://127.0.0.1:8000 --model m --sla-ms 20 --search
    """
    tree: dict[str, Any] = {
        "url": url,
        "model": model,
        "version": version,
        "rate": rate,
        "closed": closed,
        "arrivals": "trace" if trace else arrivals,
        "trace": trace,
        "sizes": sizes,
        "duration_s": duration,
        "warmup_s": warmup,
        "drain_s": drain,
        "sla_ms": sla_ms,
        "percentile": percentile,
        "confidence": confidence,
        "seed": seed,
        "processes": processes,
        "max_connections": max_connections,
        "body": body,
        "rows": rows,
        "user_columns": tuple(name for name in user_columns.split(",") if name),
        "top_k": top_k,
        "timeout_ms": timeout_ms,
        "headers": tuple(_header(text) for text in header or ()),
        "max_lateness_ms": max_lateness_ms,
    }
    _run(_plan(tree, search, loadgen), search, repeats, loadgen, samples, json)


def _plan(tree: dict[str, Any], search: bool, loadgen: str) -> "Plan":
    from fastdlrm.config import from_tree
    from fastdlrm.errors import ConfigError
    from fastdlrm.load.plan import Plan

    if search and loadgen:
        raise ConfigError("--search and --loadgen exclude each other; give one of them")
    if search and tree["rate"] is None and tree["closed"] is None:
        tree["closed"] = tree["processes"]  # the search finds out where to begin
    if loadgen == "offline" and tree["rate"] is None:
        raise ConfigError("--loadgen offline: give --rate, the queries a second that are expected")
    return from_tree(tree, Plan, "fastdlrm load")


def _run(
    plan: "Plan",
    search: bool,
    repeats: int,
    loadgen: str,
    samples: Path | None,
    json: bool,
) -> None:
    from fastdlrm.cli import load_text

    result: Any
    text: Callable[[Any], Iterable[str]]
    if loadgen:
        from fastdlrm.load.loadgen import run_loadgen

        result = run_loadgen(plan, loadgen)
        text = load_text.loadgen_lines
    elif search:
        from fastdlrm.load.search import search as search_rate

        result = search_rate(plan, repeats=repeats, told=load_text.tell_probe)
        text = load_text.search_lines
    else:
        from fastdlrm.load.run import run

        result = run(plan, samples=samples)
        text = load_text.result_lines
    if json:
        typer.echo(msgspec.json.encode(result).decode())
        return
    for line in text(result):
        typer.echo(line)


def _header(text: str) -> tuple[str, str]:
    from fastdlrm.errors import ConfigError

    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not (name + value).isprintable():
        raise ConfigError(f"--header {text!r}: expected 'NAME: VALUE'")
    return name.strip(), value.strip()
