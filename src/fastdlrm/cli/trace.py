"""`fastdlrm trace`: stack-distance profiles of traces of ids, and synthetic traces from them."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import typer

from fastdlrm.cli.options import Json, Overrides, emit
from fastdlrm.cli.progress import bar
from fastdlrm.errors import ConfigError

if TYPE_CHECKING:
    from fastdlrm.data.trace import Profile, Rule

logger = logging.getLogger(__name__)

app = typer.Typer(
    help="Profile the locality of traces of ids, and draw synthetic traces that have it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

RuleOption = Annotated[
    str,
    typer.Option(
        "--rule",
        help="What becomes of distances too deep for the ids used so far: deferred (kept for "
        "later), paper (not drawn), padded (not drawn, new ids more often).",
    ),
]


class TraceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A profile in a few numbers."""

    file: str
    """The profile."""
    num_ids: int
    """Distinct ids."""
    new_share: float
    """Share of accesses to an id never used before."""
    mean_distance: float
    """Mean stack distance, new ids counted as 0."""


@app.command("profile")
def profile(
    out: Annotated[Path, typer.Option(help="Folder for the profiles, NAME_j.log each.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Trace of ids, .npy or text, or a glob. Repeatable."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder instead: a profile a sparse feature.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the dataset.")] = "train",
    json: Json = False,
) -> None:
    """Count how far back in the order of use each access's id lies.

    Of traces in files, or of the sparse features of a dataset, in the order of its rows.

        fastdlrm trace profile --data DATA --split test --out PROFILES
    """
    if (data is None) == (not inputs):
        raise ConfigError("trace profile: give either --input or --data")
    profiles = _of_dataset(data, split) if data else _of_files(inputs or [])
    summaries = [_written(out, name, j, found) for j, (name, found) in enumerate(profiles)]

    def human() -> dict[str, Any]:
        return {
            s.file: f"{s.num_ids:,} ids, {s.new_share:.2%} of accesses new, mean distance "
            f"{s.mean_distance:,.1f}"
            for s in summaries
        }

    emit(summaries, json, human)


@app.command("generate")
def generate(
    profiles: Annotated[
        list[str],
        typer.Option("--profile", help="Made by `trace profile`, or a glob in quotes. Repeatable."),
    ],
    length: Annotated[
        str, typer.Option(help="Accesses of a trace; with --config rows, as `random --rows`.")
    ],
    out: Annotated[Path, typer.Option(help="A .npy or .txt file; with --config, a dataset.")],
    config: Annotated[
        str, typer.Option(help="Preset or TOML file: a profile a sparse feature of its [data].")
    ] = "",
    rule: RuleOption = "deferred",
    seed: Annotated[int, typer.Option(help="The same seed gives the same ids.", min=0)] = 1,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Draw a trace with the stack distances of a profile, or a dataset of one trace a feature.

    A trace goes on from row to row. Of a dataset, all but the ids is drawn as `random` does.

        fastdlrm trace generate --profile PROFILES/C3_2.log --length 1000000 --out ids.npy

        fastdlrm trace generate --profile 'PROFILES/*.log' --config C.toml --length 9000 --out DATA
    """
    from fastdlrm.cli.random import rows_by_split, shown
    from fastdlrm.data.source import expand_inputs

    paths = expand_inputs(profiles)
    num_rows = rows_by_split(length)
    if not config:
        if len(num_rows) > 1:
            raise ConfigError(f"--length {length!r}: one number for a file; splits need --config")
        num_ids = num_rows["train"]
        _generate_file(paths, out, num_ids, _rule(rule), seed)
        emit({"num_ids": num_ids, "file": str(out)}, json, lambda: {"ids": num_ids, "file": out})
        return

    from fastdlrm.config import load_config
    from fastdlrm.data.random_dataset import Traces, write_random
    from fastdlrm.data.trace_file import in_order_of_features
    from fastdlrm.train.recipe import Recipe

    recipe = load_config(config, Recipe, overrides or ())
    traces = Traces(paths=in_order_of_features(paths), rule=_rule(rule))
    with bar("generate", sum(num_rows.values())) as advance:
        manifest = write_random(
            out,
            recipe.data,
            recipe.random,
            num_rows,
            seed=seed,
            traces=traces,
            progress=advance,
        )
    emit(manifest, json, lambda: shown(manifest, out))


def _generate_file(paths: list[Path], out: Path, length: int, rule: "Rule", seed: int) -> None:
    from fastdlrm.data.trace import TraceGenerator
    from fastdlrm.data.trace_file import IDS_AT_ONCE, check_ids_path, read_profile, write_ids

    check_ids_path(out)
    if len(paths) != 1:
        raise ConfigError(
            f"--profile: {len(paths)} profiles for one file of ids; name one, or pass --config"
        )
    generator = TraceGenerator(read_profile(paths[0]), seed, rule)
    with bar("generate", length) as advance:

        def pieces() -> Iterator[Any]:
            for start in range(0, length, IDS_AT_ONCE):
                size = min(IDS_AT_ONCE, length - start)
                yield generator.draw(size)
                advance(size)

        write_ids(out, pieces(), length)


def _of_files(inputs: list[str]) -> Iterator[tuple[str, "Profile"]]:
    from fastdlrm.data.source import expand_inputs
    from fastdlrm.data.trace import Profiler
    from fastdlrm.data.trace_file import read_ids

    for path in expand_inputs(inputs):
        profiler = Profiler()
        for ids in read_ids(path):
            profiler.add(ids)
        yield path.stem, profiler.profile(str(path))


def _of_dataset(folder: Path, split: str) -> Iterator[tuple[str, "Profile"]]:
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.data.trace import Profiler
    from fastdlrm.data.trace_file import read_feature

    dataset = Dataset.open(folder)
    if split == "train" and dataset.manifest.config["data"]["shuffle"]:
        logger.warning(
            "%s: train was shuffled when it was made, so its order says nothing of the log's "
            "locality; profile test, or prepare again with --set data.shuffle=false",
            folder,
        )
    for feature in dataset.schema.sparse:
        profiler = Profiler()
        for ids in read_feature(dataset.record_batches(split), feature.name):
            profiler.add(ids)
        yield feature.name, profiler.profile(f"{folder}: feature {feature.name!r}")


def _written(out: Path, name: str, number: int, found: "Profile") -> TraceSummary:
    from urllib.parse import quote

    from fastdlrm.data.trace_file import write_profile

    path = out / f"{quote(name, safe=' ')}_{number}.log"
    write_profile(path, found)
    return TraceSummary(
        file=str(path),
        num_ids=len(found.ids),
        new_share=float(found.cumulative[0]),
        mean_distance=found.mean_distance,
    )


def _rule(text: str) -> Any:
    from fastdlrm.data.trace import Rule

    if text not in get_args(Rule):
        raise ConfigError(f"--rule {text!r}: {', '.join(get_args(Rule))} is allowed")
    return text
