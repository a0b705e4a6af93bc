"""`fastdlrm train`: dataset -> run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdlrm.cli.launch import launch_again, without
from fastdlrm.cli.options import Config, Json, Overrides, emit
from fastdlrm.errors import ConfigError

if TYPE_CHECKING:
    from fastdlrm.train.loop import Progress


def train(
    config: Config,
    data: Annotated[Path, typer.Option(help="Dataset folder made by `fastdlrm prepare`.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out at its last checkpoint.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="Where the tables lie, made by `fastdlrm plan`.")
    ] = None,
    nproc: Annotated[
        int, typer.Option(help="Processes on this machine that share the work, one a GPU.", min=1)
    ] = 1,
    mllog: Annotated[
        Path | None, typer.Option(help="File to write MLPerf's log to; see the section [mlperf].")
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Train a DLRM on a dataset, with evaluation, checkpoints and exact resume.

    Table sizes come from the dataset. SIGTERM or Ctrl-C finishes the step, writes a checkpoint and
    exits; `--resume` continues at that very step with the very result of an uninterrupted run.

        fastdlrm train --config criteo-generated --data DATA --out RUN --set seed=1

    Several processes share the tables and the batches: --nproc 4 starts them on this machine,
    `torchrun ... -m fastdlrm train` on many. Any number of them may resume a run.
    """
    from fastdlrm.config import load_config
    from fastdlrm.train.recipe import Recipe

    if nproc > 1:
        load_config(config, Recipe, overrides or ())  # a mistake is told before anything starts
        launch_again(without(sys.argv[1:], "--nproc"), nproc)
        return
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.parallel.world import World
    from fastdlrm.train.device import device_name, resolve_device
    from fastdlrm.train.mllog import Mllog, require_loggable
    from fastdlrm.train.run import Run
    from fastdlrm.train.sharding import shard
    from fastdlrm.train.trainer import Trainer

    with World.of_environment().alike():
        recipe = load_config(config, Recipe, overrides or ())
        device = resolve_device(recipe.train.device)
        if resume and mllog is not None:
            raise ConfigError(
                f"--mllog {mllog} with --resume: MLPerf times a run from its start; leave out one"
            )
    with World.of_environment(device) as world:
        dataset = world.on_each(lambda: Dataset.open(data))
        if mllog is not None:
            with world.alike():
                require_loggable(recipe, has_validation="validation" in dataset.manifest.splits)
        sharding = shard(recipe, dataset, world, device, plan)
        is_restart = world.any(world.restart_count > 0)
        make = Run.resume if resume or is_restart else Run.create
        run = world.on_first(lambda: make(out, recipe, dataset))
        log = world.on_each(lambda: Mllog(mllog if world.is_first else None))
        log.init_start(recipe.mlperf, device_name(device))
        with _display(world.is_first) as (on_progress, on_message):
            trainer = Trainer(
                run, dataset, on_progress, on_message, world=world, sharding=sharding, mllog=log
            )
            result = trainer.train()
    if not world.is_first:
        return

    def human() -> dict[str, object]:
        lines: dict[str, object] = {
            "steps": result.step,
            "samples/s": round(result.samples_per_s),
            "waiting for data": f"{result.data_wait_share:.1%}",
        }
        if result.validation is not None:
            lines |= {
                "best step": result.best_step,
                "last validation AUC": result.validation.auc,
                "last validation log loss": result.validation.log_loss,
            }
        if recipe.train.target_metric_value is not None:
            lines["target"] = "reached" if result.reached_target else "not reached"
        lines["folder"] = result.run
        if not result.is_finished:
            lines["stopped"] = "by a signal; continue with --resume"
        return lines

    emit(result, json, human)


Display = tuple[Callable[["Progress"], None], Callable[[str], None]]


@contextmanager
def _display(
    is_shown: bool,
) -> Iterator["Display"]:
    """A live bar on a terminal, a line a record where stderr is a file; nothing if not shown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    is_live = is_shown and console.is_terminal
    with RichProgress(*columns, console=console, disable=not is_live) as live:
        task = live.add_task("", total=None)
        loss = ""

        def on_progress(progress: "Progress") -> None:
            nonlocal loss
            if progress.loss is not None:
                loss = f"loss {progress.loss:.5f}"
            rate = f"{progress.samples_per_s:,.0f} samples/s"
            wait = f"{progress.data_wait_share:.0%} waiting"
            text = f"{loss}  {rate}  {wait}"
            live.update(task, completed=progress.step, total=progress.total_steps, description=text)
            if progress.loss is not None and not console.is_terminal:
                typer.echo(f"step {progress.step}/{progress.total_steps}  {text}", err=True)

        def on_message(message: str) -> None:
            live.console.print(message, markup=False, soft_wrap=True)

        yield on_progress, on_message
