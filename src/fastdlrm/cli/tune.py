"""`fastdlrm tune`: config + ranges + dataset -> study, best config."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdlrm.cli.options import Config, Json, Overrides

if TYPE_CHECKING:
    from fastdlrm.contracts.study import StudyResult


def tune(
    config: Config,
    data: Annotated[Path, typer.Option(help="Dataset folder made by `fastdlrm prepare`.")],
    out: Annotated[Path, typer.Option(help="Study folder to make.")],
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", help="KEY=LOW..HIGH, KEY=LOW..HIGH:STEP or KEY=log:LOW..HIGH. Repeatable."
        ),
    ] = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choice", help="KEY=V1,V2,... Repeatable.")
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of [range], [choice], [variant] and [same]: docs/guides/tune.md."
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="Trials in all, those before --resume included.", min=1)
    ] = 20,
    workers: Annotated[
        int, typer.Option(help="Trials side by side, which share the cores or GPUs.", min=1)
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Of the values drawn; trials train with the config's.", min=0)
    ] = 0,
    evaluations_per_epoch: Annotated[
        int | None,
        typer.Option(help="When trials are compared; not given: as the config evaluates.", min=1),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="End trials below the others' median.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in --out, or begin it.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="At the end, evaluate the best trial on test.")
    ] = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Search a config's ranges for the best validation metric (train.best_metric).

    Each trial is a run in OUT/trials. OUT/best.toml is the best one's config, for `fastdlrm train`;
    `fastdlrm report OUT` draws the study. A killed study goes on with --resume, its interrupted
    trials at their last checkpoint.

        fastdlrm tune --config my.toml --data DATA --out STUDY --trials 30 --workers 2
        --range train.dense_optimizer.learning_rate=log:1e-4..1e-1 --choice model.embedding_dim=8,16
    """
    import msgspec

    from fastdlrm.cli.tune_text import study_text
    from fastdlrm.config import load_config
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.train.recipe import Recipe
    from fastdlrm.train.run import with_data_of
    from fastdlrm.tune.search import require_optuna
    from fastdlrm.tune.space import read_space
    from fastdlrm.tune.study import opened, settings_of

    require_optuna()
    dataset = Dataset.open(data)
    base = with_data_of(dataset, load_config(config, Recipe, overrides or ()))
    settings = settings_of(
        base,
        dataset,
        read_space(space, ranges or (), choices or (), base),
        seed=seed,
        evaluations_per_epoch=evaluations_per_epoch,
        is_pruning=prune,
    )

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    with opened(out, settings, dataset, is_resumed=resume, on_message=tell) as study:
        result = study.run(trials, workers)
    is_finished = sum(trial.state != "running" for trial in result.trials) >= trials
    if not is_finished:
        tell("stopped by a signal; go on with --resume")
    if json:
        typer.echo(msgspec.json.encode(result).decode())
    else:
        typer.echo(study_text(result, out))
    if test and is_finished:
        _test(result, out, data)


def _test(result: "StudyResult", out: Path, data: Path) -> None:
    """Evaluate the best trial on test, and say so on stderr: stdout is the study's."""
    from fastdlrm.metrics.eval_result import write_eval_result
    from fastdlrm.train.evaluate import evaluate_run

    assert result.best is not None
    found = evaluate_run(out / result.trials[result.best].run, data, "test")
    write_eval_result(out / "test.json", found)
    told = ", ".join(f"{name} {value:.5f}" for name, value in found.values.scalars().items())
    typer.echo(f"test: {told}; written to {out / 'test.json'}", err=True)
