"""What compressed tables cost in AUC, on a generated log: each way beside a row for every id.

One dataset, every way with the same seeds; test metrics of the best checkpoint. Rare ids are kept,
so that there is something to compress.

Usage: python benchmarks/bench_compression.py [ROWS] [SEED ...]
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from results_file import write

from fastdlrm.config import load_config
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from fastdlrm.model.layout import layout_of, table_sizes
from fastdlrm.train.evaluate import evaluate
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer

PRESET = "criteo-generated"
OVERRIDES = ("data.sparse.0.min_count=1", "train.global_batch_size=512")
THRESHOLD = 200
SHARES = (4, 16)
"""A table above the threshold keeps about one row in so many."""


def ways(sizes: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """By name, overrides of the preset."""
    found: dict[str, tuple[str, ...]] = {"plain": ()}
    large = {name: rows for name, rows in sizes.items() if rows > THRESHOLD}
    for share in SHARES:
        for num_hashes in (1, 2):
            tables = ", ".join(
                f"{name} = {{kind = 'hash', num_rows = {rows // share}, num_hashes = {num_hashes}}}"
                for name, rows in large.items()
            )
            found[f"hash-{num_hashes}-{share}"] = (f"model.compression={{tables = {{{tables}}}}}",)
        for operation in ("add", "mult", "concat"):
            kind = f"kind = 'quotient_remainder', operation = '{operation}'"
            default = f"{{{kind}, num_collisions = {share}}}"
            name = f"quotient_remainder-{operation}-{share}"
            rule = f"{{threshold_rows = {THRESHOLD}, default = {default}}}"
            found[name] = (f"model.compression={rule}",)
    return found


def measure(
    dataset: Dataset, folder: Path, seed: int, way: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """Train one way, and test it."""
    recipe = load_config(PRESET, Recipe, (*OVERRIDES, f"seed={seed}", *overrides))
    run = Run.create(folder, recipe, dataset)
    result = Trainer(run, dataset).train()
    device = torch.device("cpu")
    values = evaluate(run.load_model("best"), dataset.split("test"), 8192, device)
    layout = layout_of(run.recipe.model, dataset.schema, dataset.manifest.encoding)
    return {
        "way": way,
        "seed": seed,
        "table_rows": sum(layout.num_embeddings.values()),
        "table_bytes": layout.num_numbers * 4,
        "auc": values.auc,
        "log_loss": values.log_loss,
        "best_step": result.best_step,
        "samples_per_s": result.samples_per_s,
    }


def compare(name: str, ways_of: Callable[[dict[str, int]], dict[str, tuple[str, ...]]]) -> None:
    """Measure ways on rows and seeds of the command line, and write the result.

    Args:
        name: Of the result.
        ways_of: Rows by table -> overrides of the preset by way.
    """
    num_rows, *seeds = [int(word) for word in sys.argv[1:]] or [300_000]
    seeds = seeds or [1, 2, 3]
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generate(folder / "log", num_rows=num_rows, num_files=2, gzip=False, seed=7)
        best = json.loads((folder / "log" / "teacher.json").read_text())["auc"]
        inputs = expand_inputs([str(folder / "log" / "day_*")])
        recipe = load_config(PRESET, Recipe, OVERRIDES)
        prepare(inputs, recipe.data, folder / "data", memory_bytes=2**30)
        dataset = Dataset.open(folder / "data")
        sizes = table_sizes(dataset.schema, dataset.manifest.encoding)
        samples = []
        for seed in seeds:
            for way, overrides in ways_of(sizes).items():
                out = folder / f"{way}-{seed}"
                samples.append(measure(dataset, out, seed, way, overrides))
                print(samples[-1], flush=True)
    config = {
        "preset": PRESET,
        "overrides": OVERRIDES,
        "rows": num_rows,
        "seeds": seeds,
        "threshold_rows": THRESHOLD,
    }
    print(write(name, config, samples, {"best_auc": best}))


if __name__ == "__main__":
    compare("compression", ways)
