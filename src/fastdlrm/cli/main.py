"""The command line: one file a command, listed in data-flow order.

Exit codes: 0 done, 1 failed, 2 wrong usage or config; stopped by a signal, 128 and its number. A
user's mistake prints one line on stderr, never a traceback.
"""

import signal
import sys
from types import FrameType

import typer

from fastdlrm import __version__
from fastdlrm.cli import (
    bench,
    doctor,
    download,
    embeddings,
    evaluate,
    export,
    export_binary,
    export_checkpoint,
    export_delta,
    generate,
    import_checkpoint,
    inspect,
    latency_bounded,
    load,
    multihot,
    plan,
    predict,
    prepare,
    random,
    report,
    serve,
    trace,
    train,
    tune,
)
from fastdlrm.errors import ConfigError, FastDLRMError

app = typer.Typer(
    name="fastdlrm",
    help="Deep learning recommendation models: raw log -> dataset -> model -> predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    local_rank: int = typer.Option(
        0, "--local-rank", hidden=True, help="Given by torch.distributed.launch; LOCAL_RANK counts."
    ),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.command("doctor")(doctor.doctor)
app.command("generate")(generate.generate)
app.command("download")(download.download)
app.command("inspect")(inspect.inspect)
app.command("prepare")(prepare.prepare)
app.command("random")(random.random)
app.command("multihot")(multihot.multihot)
app.add_typer(trace.app, name="trace")
app.command("export-binary")(export_binary.export_binary)
app.command("plan")(plan.plan)
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("import-checkpoint")(import_checkpoint.import_checkpoint)
app.command("export-checkpoint")(export_checkpoint.export_checkpoint)
app.command("eval")(evaluate.evaluate)
app.command("embeddings")(embeddings.embeddings)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("export-delta")(export_delta.export_delta)
app.command("serve")(serve.serve)
app.command("load")(load.load)
bench.app.command("latency-bounded")(latency_bounded.latency_bounded)
app.add_typer(bench.app, name="bench")
app.command("report")(report.report)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except FastDLRMError as problem:
        if not getattr(problem, "__notes__", ()):  # else another rank tells it
            typer.echo(f"error: {problem}", err=True)
        sys.exit(2 if isinstance(problem, ConfigError) else 1)
    except OSError as problem:
        typer.echo(f"error: {problem}; check the path, its disk and permissions", err=True)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to be taken away


def _terminate(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, taking half-written folders away."""
    sys.exit(128 + number)
