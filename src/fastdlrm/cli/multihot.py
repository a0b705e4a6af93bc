"""`fastdlrm multihot`: dataset of single ids -> dataset of bags."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fastdlrm.cli.options import Json, emit
from fastdlrm.cli.progress import bar
from fastdlrm.errors import ConfigError


def multihot(
    data: Annotated[Path, typer.Option(help="Dataset folder of single ids.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to make; must not exist.")],
    sizes: Annotated[
        str, typer.Option(help="Ids a bag by sparse feature, e.g. 3,2,1; mlperf for its 26.")
    ] = "mlperf",
    distribution: Annotated[
        str, typer.Option(help="Of the further ids: uniform or pareto (shape 0.25).")
    ] = "uniform",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bags.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Threads.", min=1)] = 2,
    json: Json = False,
) -> None:
    """Make bags of single ids, as MLPerf makes the multi-hot data of DLRM-DCNv2.

    Each id stands for one bag: the id itself and further ids of its table, drawn once by seed.

        fastdlrm multihot --data DATA --sizes mlperf --out MULTIHOT
    """
    from fastdlrm.cli.random import shown
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.data.multihot import MLPERF_SIZES, write_multi_hot

    numbers = MLPERF_SIZES if sizes == "mlperf" else _numbers(sizes)
    dataset = Dataset.open(data)
    total = sum(split.num_rows for split in dataset.manifest.splits.values())
    with bar("multihot", total) as advance:
        manifest = write_multi_hot(
            dataset,
            out,
            numbers,
            distribution=_distribution(distribution),
            seed=seed,
            num_workers=workers,
            progress=advance,
        )
    emit(
        manifest,
        json,
        lambda: {"ids a row": sum(numbers), **shown(manifest, out)},
    )


def _distribution(text: str) -> Any:
    if text not in ("uniform", "pareto"):
        raise ConfigError(f"--distribution {text!r}: uniform or pareto is allowed")
    return text


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ConfigError(f"--sizes {text!r}: mlperf, or whole numbers separated by commas")
    return tuple(map(int, words))
