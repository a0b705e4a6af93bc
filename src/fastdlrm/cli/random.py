"""`fastdlrm random`: a dataset of random rows, without a raw file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdlrm.cli.options import Config, Json, Overrides, emit
from fastdlrm.cli.progress import bar
from fastdlrm.errors import ConfigError

if TYPE_CHECKING:
    from fastdlrm.contracts.manifest import DatasetManifest


def random(
    config: Config,
    rows: Annotated[
        str, typer.Option(help="Rows of train, or of train,validation,test: 100000,0,10000.")
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to make; must not exist.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rows.", min=0)] = 1,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Write a dataset of random rows, for benchmarks and dry runs.

    The config's [data] section says which features and tables there are (encoding "identity"
    or "hash"), its [random] section how they are drawn. The label is independent of the features.

        fastdlrm random --config random --rows 100000,0,10000 --out DATA
    """
    from fastdlrm.config import load_config
    from fastdlrm.data.random_dataset import write_random
    from fastdlrm.train.recipe import Recipe

    recipe = load_config(config, Recipe, overrides or ())
    num_rows = rows_by_split(rows)
    with bar("random", sum(num_rows.values())) as advance:
        manifest = write_random(
            out, recipe.data, recipe.random, num_rows, seed=seed, progress=advance
        )
    emit(manifest, json, lambda: shown(manifest, out))


def rows_by_split(text: str) -> dict[str, int]:
    """Rows of train, validation and test.

    Raises:
        ConfigError: Not one to three whole numbers.
    """
    words = text.split(",")
    if len(words) > 3 or not all(word.strip().isdecimal() for word in words):
        raise ConfigError(
            f"rows {text!r}: a whole number, or three of train,validation,test, is allowed"
        )
    return dict(zip(("train", "validation", "test"), map(int, words), strict=False))


def shown(manifest: "DatasetManifest", out: Path) -> dict[str, Any]:
    """A dataset in a few lines."""
    lines: dict[str, Any] = {
        name: f"{split.num_rows:,} rows" for name, split in manifest.splits.items()
    }
    lines["table rows"] = sum(t.num_embeddings for t in manifest.encoding.tables.values())
    lines["folder"] = str(out)
    return lines
