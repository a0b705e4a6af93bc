"""`fastdlrm train`: dataset -> run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdlrm.cli.options import Config, Json, Overrides, emit

if TYPE_CHECKING:
    from fastdlrm.train.trainer import Progress


def train(
    config: Config,
    data: Annotated[Path, typer.Option(help="Dataset folder made by `fastdlrm prepare`.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out at its last checkpoint.")
    ] = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Train a DLRM on a dataset, with evaluation, checkpoints and exact resume.

    Table sizes come from the dataset. SIGTERM or Ctrl-C finishes the step, writes a checkpoint and
    exits; `--resume` continues at that very step with the very result of an uninterrupted run.

        fastdlrm train --config criteo-generated --data DATA --out RUN --set seed=1
    """
    from fastdlrm.config import load_config
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.train.recipe import Recipe
    from fastdlrm.train.run import Run
    from fastdlrm.train.trainer import Trainer

    recipe = load_config(config, Recipe, overrides or ())
    dataset = Dataset.open(data)
    run = (Run.resume if resume else Run.create)(out, recipe, dataset)
    with _display() as (on_progress, on_message):
        result = Trainer(run, dataset, on_progress, on_message).train()

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
        lines["folder"] = result.run
        if not result.is_finished:
            lines["stopped"] = "by a signal; continue with --resume"
        return lines

    emit(result, json, human)


@contextmanager
def _display() -> Iterator[tuple[Callable[["Progress"], None], Callable[[str], None]]]:
    """A live bar on a terminal, a line a record where stderr is a file."""
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
    with RichProgress(*columns, console=console, disable=not console.is_terminal) as live:
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
            live.console.print(message, markup=False)

        yield on_progress, on_message
