"""`fastdlrm bench latency-bounded`: the server's rate within an SLA, by the size of parts."""

from typing import Annotated

import msgspec
import typer

from fastdlrm.cli.bench import Model, Out, Quick, RowsScale, batch_sizes, finish
from fastdlrm.cli.latency_bounded_text import latency_bounded_lines, tell
from fastdlrm.cli.options import Json, Overrides


def latency_bounded(
    model: Model,
    out: Out,
    rows_scale: RowsScale = 1.0,
    workers: Annotated[
        int, typer.Option(help="Of the server; 0: as many as there are cores.", min=0)
    ] = 0,
    sizes: Annotated[
        str,
        typer.Option(
            help="Samples a query: production, heavy, lognormal[:MU,SIGMA], normal[:MEAN,SD], "
            "fixed:N, file:PATH."
        ),
    ] = "production",
    sla: Annotated[
        str, typer.Option(help="low, medium or high: 0.5, 1 or 1.5 times the preset's sla_ms.")
    ] = "medium",
    sla_ms: Annotated[float | None, typer.Option(help="Another SLA.")] = None,
    percentile: Annotated[float, typer.Option(help="That keeps the SLA: 95 or 99.")] = 95.0,
    batches: Annotated[
        str | None,
        typer.Option(
            help="Most samples of a part, B; the static choice joins them. "
            "16,32,...,1024, with --quick 64,1024."
        ),
    ] = None,
    offload_device: Annotated[
        str | None,
        typer.Option(help="Then search the size from which on queries go whole to a worker there."),
    ] = None,
    offload: Annotated[
        str | None,
        typer.Option(help="Sizes to try. 96,128,192,256,384,512, with --quick 256."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option(help="Measure all B; else those that the hill climb visits.")
    ] = True,
    mode: Annotated[
        str, typer.Option(help="search, or reference: the controller of DeepRecSys' repository.")
    ] = "search",
    quick: Quick = False,
    seconds: Annotated[
        float | None, typer.Option(help="Of a probe, at least; 30, with --quick 1.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Seeds; 5, with --quick or --mode reference 1.", min=1)
    ] = None,
    max_lateness_ms: Annotated[
        float | None, typer.Option(help="p99 of late sending beyond which a probe is invalid.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and sizes.", min=0)] = 0,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Queries a second that fastdlrm's server answers within an SLA, and which split is best.

    Serves the preset's model with drawn weights, bisects the rate for each B, and climbs from the
    static choice, the largest query dealt out to all workers. Without --quick: hours.

        fastdlrm bench latency-bounded --model rmc1 --rows-scale 0.1 --quick --out RMC1.json
    """
    from fastdlrm.bench import study as studies
    from fastdlrm.bench.host import usable_cores
    from fastdlrm.bench.latency_bounded import bench_latency_bounded
    from fastdlrm.bench.models import BenchModel
    from fastdlrm.config import from_tree

    loaded = BenchModel.load(model, rows_scale=rows_scale, device="cpu", overrides=overrides or ())
    if sla_ms is None:
        sla_ms = studies.sla_of(model, loaded.recipe.sla_ms, sla)
    thresholds = ",".join(map(str, studies.offload_ladder_of(quick)))
    tree = {
        "workers": workers or usable_cores(),
        "sizes": sizes,
        "sla_ms": sla_ms,
        "percentile": percentile,
        "ladder": batch_sizes(batches, ",".join(map(str, studies.ladder_of(mode, quick)))),
        "offload_device": offload_device or "",
        "offload_ladder": batch_sizes(offload, thresholds),
        "mode": mode,
        "sweep": sweep,
        "is_quick": quick,
        "seed": seed,
        "max_lateness_ms": max_lateness_ms,
    }
    study = from_tree(tree, studies.Study, "fastdlrm bench latency-bounded")
    effort = studies.QUICK if quick else studies.FULL
    effort = msgspec.structs.replace(
        effort,
        seconds=seconds or effort.seconds,
        num_rounds=repeats or (1 if mode == "reference" else effort.num_rounds),
    )
    finish(bench_latency_bounded(loaded, study, effort, tell), out, json, latency_bounded_lines)
