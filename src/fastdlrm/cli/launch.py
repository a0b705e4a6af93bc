"""Run this very command on several ranks."""

from collections.abc import Sequence

import typer


def launch_again(arguments: Sequence[str], num_processes: int) -> None:
    """Run the command on every rank, and wait for the end; leaves with a failed rank's exit code.

    Args:
        arguments: Of the command line.
        num_processes: Ranks, all on this machine.
    """
    from fastdlrm.parallel.launch import RankFailed, launch

    try:
        launch(arguments, num_processes)
    except RankFailed as problem:
        if not problem.is_told:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(problem.exit_code) from None


def without(arguments: Sequence[str], name: str) -> list[str]:
    """Arguments without an option and its value."""
    kept = [x for x in arguments if not x.startswith(f"{name}=")]
    while name in kept:
        place = kept.index(name)
        del kept[place : place + 2]
    return kept
