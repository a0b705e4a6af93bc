"""`fastdlrm bench`: characterise inference and training on this machine."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fastdlrm.cli.bench_text import comparison_lines, result_lines
from fastdlrm.cli.colocate_text import colocate_lines
from fastdlrm.cli.launch import launch_again
from fastdlrm.cli.options import Json, Overrides
from fastdlrm.cli.roofline_text import roofline_lines
from fastdlrm.contracts.bench_result import BenchResult, Effort, read_result, write_result
from fastdlrm.errors import ConfigError

if TYPE_CHECKING:
    from fastdlrm.bench.models import BenchModel

app = typer.Typer(
    help="Measure models on this machine: raw samples, intervals, and where they come from.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Model = Annotated[
    str,
    typer.Option(
        "--model", help="Preset with tables for random data (rmc1, ncf, ...), or a TOML file."
    ),
]
RowsScale = Annotated[
    float, typer.Option(help="Factor on the rows of all tables; stands in the result.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="That compute on the CPU; 0: as torch chooses.", min=0)]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer and shorter measurements.")]
Out = Annotated[Path, typer.Option(help="JSON file to write.")]
Seconds = Annotated[
    float | None, typer.Option(help="Of one measurement, at most; 3, with --quick 0.5.")
]

QUICK = Effort(warmup_s=0.1, seconds=0.5, spread=0.03, min_samples=20, num_rounds=3)
QUICK_BATCHES = "1,16,256"


@app.command("batch")
def batch(
    model: Model,
    out: Out,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes; 1,4,16,64,256,1024, with --quick 1,16,256."),
    ] = None,
    rows_scale: RowsScale = 1.0,
    device: Device = "auto",
    threads: Threads = 0,
    quick: Quick = False,
    seconds: Seconds = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Latency and throughput of inference against batch size.

    fastdlrm bench batch --model rmc1 --rows-scale 0.01 --out RMC1.json
    """
    from fastdlrm.bench.batch import BATCH_SIZES, bench_batch

    sizes = batch_sizes(batches, QUICK_BATCHES if quick else _joined(BATCH_SIZES))
    loaded = _load(model, rows_scale, device, threads, overrides)
    finish(bench_batch(loaded, sizes, effort(quick, seconds)), out, json)


@app.command("operators")
def operators(
    model: Model,
    out: Out,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes; 1,16,64,256,1024, with --quick 1,16,256."),
    ] = None,
    passes: Annotated[
        str, typer.Option(help="inference, training, or both with a comma.")
    ] = "inference,training",
    rows_scale: RowsScale = 1.0,
    device: Device = "auto",
    threads: Threads = 0,
    quick: Quick = False,
    seconds: Seconds = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Share of time by operator class against batch size; FLOPs, bytes, hardware counters.

    fastdlrm bench operators --model rmc2 --rows-scale 0.1 --out RMC2.json
    """
    from fastdlrm.bench.operators import BATCH_SIZES, bench_operators

    sizes = batch_sizes(batches, QUICK_BATCHES if quick else _joined(BATCH_SIZES))
    kinds = pass_names(passes)
    loaded = _load(model, rows_scale, device, threads, overrides)
    finish(bench_operators(loaded, sizes, kinds, effort(quick, seconds)), out, json)


@app.command("roofline")
def roofline(
    model: Model,
    out: Out,
    batches: Annotated[
        str | None,
        typer.Option(help="Batch sizes, 1 added; 64,1024, with --quick 256."),
    ] = None,
    passes: Annotated[
        str, typer.Option(help="inference, training, or both with a comma.")
    ] = "inference,training",
    rows_scale: RowsScale = 1.0,
    device: Device = "auto",
    threads: Threads = 0,
    ranks: Annotated[
        int, typer.Option(help="Between which all-to-all is measured, on this machine.", min=1)
    ] = 1,
    quick: Quick = False,
    seconds: Seconds = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """How far a model is from what this machine can do, and what would help it most.

    fastdlrm bench roofline --model rmc2 --rows-scale 0.1 --out RMC2.json
    """
    from fastdlrm.bench.ceilings import measure_exchange
    from fastdlrm.bench.roofline import BATCH_SIZES, bench_roofline
    from fastdlrm.parallel.world import World

    sizes = batch_sizes(batches, "256" if quick else _joined(BATCH_SIZES))
    kinds = pass_names(passes)
    loaded = _load(model, rows_scale, device, threads, overrides)
    taken = effort(quick, seconds)
    world = World.of_environment(loaded.device)
    if world.size == 1 < ranks:
        launch_again(sys.argv[1:], ranks)
        return
    exchange = measure_exchange(world, loaded.device)
    if world.is_first:
        found = bench_roofline(loaded, sizes, kinds, taken, exchange)
        finish(found, out, json, roofline_lines)


@app.command("colocate")
def colocate(
    model: Model,
    out: Out,
    copies: Annotated[
        str | None,
        typer.Option(help="Copies at once: 1,2,4; up to twice the cores, on two or one up to 8."),
    ] = None,
    partner: Annotated[
        str | None, typer.Option("--with", help="Preset of which half of the copies are, besides.")
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(help="private: a copy has its own; shared: all map the same; both."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size of each copy.", min=1)] = 32,
    sla_ms: Annotated[
        float | None, typer.Option(help="Of p99; the preset's sla_ms, where it has one.")
    ] = None,
    rows_scale: RowsScale = 1.0,
    device: Device = "auto",
    quick: Quick = False,
    seconds: Seconds = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Copies of a model on one machine, a process a core: latency and throughput of their number.

    fastdlrm bench colocate --model rmc1 --rows-scale 0.1 --copies 1,2,4 --out RMC1.json
    """
    from fastdlrm.bench.colocate import bench_colocate
    from fastdlrm.bench.colocation import Asked
    from fastdlrm.bench.cores import default_copies

    loaded = _load(model, rows_scale, device, 1, overrides)
    if tables is None:
        tables = "both" if loaded.device.type == "cpu" else "private"
    if sla_ms is not None and not sla_ms > 0:
        raise ConfigError(f"--sla-ms {sla_ms:g}: above 0 is allowed")
    asked = Asked(
        copies=tuple(sorted(batch_sizes(copies, _joined(default_copies(quick)), "--copies"))),
        batch_size=batch,
        tables=table_kinds(tables),
        sla_ms=sla_ms,
        partner=_load(partner, rows_scale, device, 1, overrides) if partner else None,
    )
    finish(bench_colocate(loaded, asked, effort(quick, seconds)), out, json, colocate_lines)


@app.command("compare")
def compare(
    files: Annotated[list[Path], typer.Argument(help="Results; the first is what others are to.")],
    noise: Annotated[
        float, typer.Option(help="Least difference that counts, as a share of the time.")
    ] = 0.02,
    json: Json = False,
) -> None:
    """The same measurements of several results: ratios of medians with bootstrap intervals.

    fastdlrm bench compare BEFORE.json AFTER.json
    """
    from fastdlrm.bench.compare import compare as run

    if len(files) < 2:
        raise ConfigError(f"bench compare: {len(files)} result; name two or more")
    if not 0 <= noise < 1:
        raise ConfigError(f"--noise {noise:g}: 0 up to, not with, 1 is allowed")
    found = run(files, [read_result(path) for path in files], noise)
    if json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    for line in comparison_lines(found):
        typer.echo(line)


def pass_names(text: str) -> tuple[str, ...]:
    """Passes of "inference,training".

    Raises:
        ConfigError: Another word, or one twice.
    """
    names = tuple(word.strip() for word in text.split(","))
    if not set(names) <= {"inference", "training"} or len(set(names)) < len(names):
        raise ConfigError(f"--passes {text!r}: inference, training or both are allowed")
    return names


def batch_sizes(text: str | None, default: str, option: str = "--batches") -> tuple[int, ...]:
    """Batch sizes, or other numbers, of "1,4,16".

    Raises:
        ConfigError: Not whole numbers of 1 or more, each named once.
    """
    words = [word.strip() for word in (text or default).split(",")]
    sizes = [int(word) if word.isdecimal() else 0 for word in words]
    if min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise ConfigError(f"{option} {text!r}: different whole numbers from 1 are allowed: 1,4,16")
    return tuple(sizes)


def table_kinds(text: str) -> tuple[str, ...]:
    """Kinds of tables that "private", "shared" or "both" names.

    Raises:
        ConfigError: Another word.
    """
    kinds = {"private": ("private",), "shared": ("shared",), "both": ("private", "shared")}
    if text not in kinds:
        raise ConfigError(f"--tables {text!r}: private, shared or both is allowed")
    return kinds[text]


def effort(quick: bool, seconds: float | None) -> Effort:
    """How long to measure.

    Raises:
        ConfigError: No time at all.
    """
    chosen = QUICK if quick else Effort()
    if seconds is None:
        return chosen
    if not seconds > 0:
        raise ConfigError(f"--seconds {seconds:g}: above 0 is allowed")
    return msgspec.structs.replace(chosen, seconds=seconds)


def _joined(sizes: tuple[int, ...]) -> str:
    return ",".join(map(str, sizes))


def _load(
    model: str, rows_scale: float, device: str, threads: int, overrides: list[str] | None
) -> "BenchModel":
    import torch

    from fastdlrm.bench.models import BenchModel

    if threads:
        torch.set_num_threads(threads)
    return BenchModel.load(model, rows_scale=rows_scale, device=device, overrides=overrides or ())


def finish(
    result: BenchResult,
    out: Path,
    json: bool,
    lines: Callable[[BenchResult], Iterator[str]] = result_lines,
) -> None:
    """Write a result and print it."""
    write_result(out, result)
    if json:
        typer.echo(msgspec.json.encode(result).decode())
        return
    for line in lines(result):
        typer.echo(line)
    typer.echo(f"written to {out}")
