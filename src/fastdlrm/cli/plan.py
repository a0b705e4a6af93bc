"""`fastdlrm plan`: where every table will lie, what each rank will hold, how fast it will be."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fastdlrm.cli.launch import launch_again
from fastdlrm.cli.options import Config, Json, Overrides, bytes_of

if TYPE_CHECKING:
    from rich.table import Table

    from fastdlrm.parallel.plan import ShardingPlan
    from fastdlrm.parallel.prediction import Prediction
    from fastdlrm.parallel.topology import Topology
    from fastdlrm.train.recipe import Recipe


def plan(
    config: Config,
    data: Annotated[Path, typer.Option(help="Dataset folder made by `fastdlrm prepare`.")],
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", "--gpus", min=1, help="Processes; as many as there are if absent."),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(help="measure: this machine, in 10 s; or h100xN, h200xN (N cards), cpu."),
    ] = "measure",
    memory: Annotated[
        str, typer.Option(help="Most memory a rank may fill, e.g. 80GiB; else the machine's.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write, for `train --plan`.")
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Place the tables on ranks, and say what each will hold and how long a step will take.

    Nothing is trained. To measure this machine, links included, the command starts on every rank.

        fastdlrm plan --config criteo-generated --data DATA --ranks 8 --topology h100x8
    """
    from fastdlrm.config import load_config
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.parallel.plan import write_plan
    from fastdlrm.parallel.planner import least_ranks, make_plan
    from fastdlrm.parallel.prediction import predict
    from fastdlrm.parallel.topology import named_topology
    from fastdlrm.parallel.world import World
    from fastdlrm.train.dims import describe_mixed_dims, with_table_dims
    from fastdlrm.train.memory import describe_compression
    from fastdlrm.train.recipe import Recipe
    from fastdlrm.train.workload import workload_of

    recipe = load_config(config, Recipe, overrides or ())
    limit = bytes_of(memory) if memory else None
    world = World.of_environment()
    if topology == "measure" and ranks is not None and world.size == 1 < ranks:
        launch_again(sys.argv[1:], ranks)
        return
    dataset = Dataset.open(data)
    recipe = with_table_dims(recipe, dataset.schema, dataset.manifest.encoding)
    work = workload_of(recipe, dataset)
    machine = _measured(recipe) if topology == "measure" else named_topology(topology)
    if not world.is_first:
        return
    if limit is not None:
        machine = msgspec.structs.replace(machine, memory_bytes=limit)
    if ranks is None:
        ranks = world.size if topology in ("measure", "cpu") else machine.num_ranks
    made = make_plan(work, machine, ranks)
    least = least_ranks(work, machine, ranks)
    prediction = predict(made, work, machine)
    if out is not None:
        write_plan(out, made)
    if json:
        found = {"plan": made, "prediction": prediction, "topology": machine, "least_ranks": least}
        typer.echo(msgspec.json.encode(found).decode())
    else:
        _show(made, prediction, machine, least or ranks)
        for tell in (describe_mixed_dims, describe_compression):
            for line in tell(recipe, dataset.schema, dataset.manifest.encoding):
                typer.echo(line)


def _measured(recipe: "Recipe") -> "Topology":
    """This machine, measured by all ranks."""
    from fastdlrm.parallel.measure import measure_topology
    from fastdlrm.parallel.world import World
    from fastdlrm.train.device import resolve_device

    device = resolve_device(recipe.train.device)
    with World.of_environment(device) as world:
        return measure_topology(world, device)


def _show(made: "ShardingPlan", prediction: "Prediction", machine: "Topology", least: int) -> None:
    from rich.console import Console

    from fastdlrm.parallel.footprint import size_text

    console = Console()
    console.print(_ranks_table(prediction))
    cuts = Counter(table.sharding for table in made.tables.values())
    lines = {
        "tables": ", ".join(f"{count} {sharding}" for sharding, count in sorted(cuts.items())),
        "memory": f"{size_text(prediction.most_bytes)} of {size_text(machine.memory_bytes)} on the "
        f"fullest rank; the fewest ranks that hold the tables: {least}",
        "step": f"{prediction.step_s * 1e3:.3f} ms predicted on {machine.name}",
        "samples/s": f"{prediction.samples_per_s:,.0f}",
        "communication": f"{prediction.communication_share:.0%} of the step",
    }
    for name, line in lines.items():
        console.print(f"{name:<14} {line}", highlight=False, soft_wrap=True)


def _ranks_table(prediction: "Prediction") -> "Table":
    """A line a rank; what the MLPs take is in the total alone, as it is the same on all."""
    from rich.table import Table

    from fastdlrm.parallel.footprint import size_unit

    unit, unit_name = size_unit(prediction.most_bytes)
    title = f"{unit_name} held by each rank, and what it does a step"
    table = Table(title=title, title_justify="left", box=None)
    held = ("tables", "state", "activ.", "buffers", "total")
    for name in ("rank", *held, "rows read", "moved", "sent", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for rank in prediction.ranks:
        sizes = (rank.table_bytes, rank.state_bytes, rank.activation_bytes, rank.buffer_bytes)
        of_step = (rank.moved_bytes, rank.sent_bytes)
        table.add_row(
            str(rank.rank),
            *(f"{size / unit:.2f}" for size in (*sizes, rank.total_bytes)),
            f"{rank.lookups:,}",
            *(f"{size / unit:.2f}" for size in of_step),
            f"{rank.step_s * 1e3:.3f}",
        )
    return table
