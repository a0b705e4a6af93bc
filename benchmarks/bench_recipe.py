"""What each choice of a recipe is worth: presets for small data against variants of them.

A variant is the preset with one choice changed, or the plain DLRM: dot products, the reference's
initialisation, Adagrad throughout, every value of the categorical columns a row, no number looked
up, nothing against overfitting. Its learning rates are from a coarse search on validation; those
of other optimizers are customary ones. A seed draws the weights, the order of rows and which rows
of train are validation, the same ones for all variants; training stops early, and validation
decides on everything. Test is read by two: the plain DLRM and the preset.

Usage: python benchmarks/bench_recipe.py adult DIR/adult.data.gz DIR/adult.test.gz
       python benchmarks/bench_recipe.py criteo-sample 'DIR/day_*.gz'
       python benchmarks/bench_recipe.py criteo-generated --generate 300000 --seeds 3
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_accuracy import SEEDS
from bench_precision import interval
from results_file import write

from fastdlrm.config import load_config, to_tree
from fastdlrm.contracts.exported import CalibrationKind
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.generate import generate
from fastdlrm.data.prepare import prepare
from fastdlrm.data.source import expand_inputs
from fastdlrm.export.calibration import fit_calibration, served_logits
from fastdlrm.metrics.evaluation import Evaluation
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.device import resolve_device
from fastdlrm.train.evaluate import evaluate, scores
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer

HOLDOUT = "data.split.validation={by='hash', amount=0.15}"
PLAIN, PRESET = "plain DLRM", "preset"
CALIBRATIONS: tuple[CalibrationKind, ...] = ("platt", "isotonic")
TABLES = "train.sparse_optimizer"
MLPS = "train.dense_optimizer"
DOT = ("model.interaction='dot'", "model.num_cross_layers=0", "model.cross_rank=0")
UNREGULARISED = (
    *DOT,
    "model.dropout=0.0",
    "model.norm='none'",
    "model.init='reference'",
    f"{MLPS}.weight_decay=0.0",
    f"{TABLES}.l2=0.0",
)
CATEGORIES = (
    "data.sparse=[{columns=['workclass', 'education', 'marital_status', 'occupation', "
    "'relationship', 'race', 'sex', 'native_country']}]"
)
RATES = {
    "adult": {"sgd": (1.0, 0.1), "adagrad": (0.03, 0.01), "adam": (0.001, 0.001)},
    "criteo-sample": {"sgd": (1.0, 0.1), "adagrad": (0.03, 0.01), "adam": (0.001, 0.001)},
    "criteo-generated": {"sgd": (1.0, 0.1), "adagrad": (0.03, 0.01), "adam": (0.001, 0.001)},
}
"""Learning rates of the tables' and of the MLPs' optimizer by preset and name."""


class Variant(NamedTuple):
    """A preset with something changed.

    Attributes:
        axis: Of the ablation.
        name: Of the choice.
        overrides: What it changes.
    """

    axis: str
    name: str
    overrides: tuple[str, ...]


def variants(preset: str, axes: Sequence[str] = ()) -> list[Variant]:
    """The plain DLRM, the preset, and every choice of these axes that the preset did not take."""
    recipe = load_config(preset, Recipe)
    found = [Variant("", PLAIN, plain(preset, recipe)), Variant("", PRESET, ())]
    taken = to_tree(recipe)
    others = (*optimizers(preset), *shapes(recipe), *regularisers(), *passes(recipe))
    return found + [
        variant
        for variant in others
        if not axes or variant.axis in axes
        if to_tree(load_config(preset, Recipe, variant.overrides)) != taken
    ]


def plain(preset: str, recipe: Recipe) -> tuple[str, ...]:
    """Overrides that leave a DLRM as the paper has it, trained by Adagrad."""
    tables, mlps = RATES[preset]["adagrad"]
    columns = (CATEGORIES,) if preset == "adult" else min_counts(recipe, 1)
    chosen = (*optimizer(TABLES, "adagrad", tables), *optimizer(MLPS, "adagrad", mlps))
    return (*UNREGULARISED, *chosen, *columns)


def optimizer(part: str, name: str, rate: float) -> tuple[str, str]:
    return f"{part}.name='{name}'", f"{part}.learning_rate={rate}"


def min_counts(recipe: Recipe, count: int) -> tuple[str, ...]:
    return tuple(f"data.sparse.{i}.min_count={count}" for i in range(len(recipe.data.sparse)))


def optimizers(preset: str) -> Iterator[Variant]:
    """Other optimizers, each at a customary learning rate."""
    rates = RATES[preset]
    for name in ("sgd", "adagrad", "rowwise_adagrad", "adam"):
        rate = rates[name.removeprefix("rowwise_")][0]
        yield Variant("tables' optimizer", f"{name} {rate}", optimizer(TABLES, name, rate))
    for name in ("adagrad", "adam", "adamw"):
        rate = rates[name.removesuffix("w")][1]
        yield Variant("MLPs' optimizer", f"{name} {rate}", optimizer(MLPS, name, rate))


def shapes(recipe: Recipe) -> Iterator[Variant]:
    """Other widths, interactions and initial tables."""
    model = recipe.model
    for dim in (4, 8, 16, 32):
        widths = [*model.bottom_mlp[:-1], dim]
        sets = (f"model.embedding_dim={dim}", f"model.bottom_mlp={widths}")
        yield Variant("embedding dim", str(dim), sets)
    for factor in (0.5, 2):
        bottom, top = ([int(w * factor) for w in x] for x in (model.bottom_mlp[:-1], model.top_mlp))
        widths = [*bottom, model.embedding_dim]
        yield Variant(
            "MLP width", f"{factor:g} x", (f"model.bottom_mlp={widths}", f"model.top_mlp={top}")
        )
    yield Variant("interaction", "dot", DOT)
    yield Variant("interaction", "cat", ("model.interaction='cat'", *DOT[1:]))
    for layers in (1, 2, 3):
        sets = (f"model.num_cross_layers={layers}", "model.cross_rank=16")
        yield Variant(
            "interaction", f"cross, {layers} layers", ("model.interaction='cross'", *sets)
        )
    yield Variant("initial tables", "reference", ("model.init='reference'",))
    for std in (0.01, 0.1):
        sets = ("model.init='normal'", f"model.embedding_std={std}")
        yield Variant("initial tables", f"normal {std}", sets)
    for count in (1, 2, 5, 20):
        yield Variant("min_count", str(count), min_counts(recipe, count))


def regularisers() -> Iterator[Variant]:
    """More and less against overfitting."""
    for share in (0.0, 0.2, 0.4):
        yield Variant("dropout", f"{share}", (f"model.dropout={share}",))
    for norm in ("none", "batch", "layer"):
        yield Variant("norm", norm, (f"model.norm='{norm}'",))
    for decay in (0.0, 1e-4, 1e-3):
        yield Variant("weight decay", f"{decay:g}", (f"{MLPS}.weight_decay={decay}",))
    for l2 in (0.0, 1e-5, 1e-4):
        yield Variant("embedding l2", f"{l2:g}", (f"{TABLES}.l2={l2}",))


def passes(recipe: Recipe) -> Iterator[Variant]:
    """Other batches, and other ends of training."""
    for size in (128, 256, 512, 1024, 2048):
        yield Variant("batch size", str(size), (f"train.global_batch_size={size}",))
    yield Variant("epochs", "1, its best evaluation", ("train.num_epochs=1",))
    num = recipe.train.num_epochs
    yield Variant("epochs", f"{num}, the last weights", ("train.early_stop_patience=0",))


class Bench:
    """Trains variants of one preset on one set of raw files.

    Args:
        preset: Its name.
        inputs: Raw files.
        folder: For datasets and runs.
    """

    def __init__(self, preset: str, inputs: list[Path], folder: Path) -> None:
        self.preset, self.inputs, self.folder = preset, inputs, folder
        self.datasets: dict[str, Dataset] = {}
        self.num_runs = 0

    def measure(self, variant: Variant, seed: int) -> Iterator[dict[str, Any]]:
        """Train, and the metrics on validation of the best checkpoint; of the preset calibrated
        as well."""
        sets = (f"seed={seed}", f"data.seed={seed}", HOLDOUT, *variant.overrides)
        recipe = load_config(self.preset, Recipe, sets)
        dataset = self.dataset(recipe)
        self.num_runs += 1
        run = Run.create(self.folder / f"run-{self.num_runs}", recipe, dataset)
        trained = Trainer(run, dataset).train()
        if not trained.is_finished:
            sys.exit(
                f"{variant}, seed {seed}: stopped by a signal; nothing is written of this seed"
            )
        is_last = recipe.train.early_stop_patience == 0 and variant.axis == "epochs"
        model = run.load_model("last" if is_last else "best")
        device = resolve_device(recipe.train.device)
        model = model.to(device)

        def metrics(split: str) -> dict[str, float]:
            values = evaluate(model, dataset.split(split), recipe.train.eval_batch_size, device)
            return {"auc": values.auc or 0.0, "log_loss": values.log_loss}

        at = {"axis": variant.axis, "variant": variant.name, "seed": seed}
        step = trained.step if is_last else trained.best_step
        yield {**at, "split": "validation", "step": step, **metrics("validation")}
        if variant.axis:
            return
        yield {**at, "split": "test", "step": step, **metrics("test")}
        if variant.name == PRESET:
            for kind, found in calibrated(model, dataset, device).items():
                at = {"axis": "calibration", "variant": kind, "seed": seed}
                yield {**at, "split": "validation", "step": step, **found}

    def dataset(self, recipe: Recipe) -> Dataset:
        """Prepared once for all variants that want it alike."""
        key = json.dumps(to_tree(recipe.data), sort_keys=True)
        if key not in self.datasets:
            out = self.folder / f"data-{len(self.datasets)}"
            prepare(self.inputs, recipe.data, out, memory_bytes=2**31, num_workers=1)
            self.datasets[key] = Dataset.open(out)
        return self.datasets[key]


def calibrated(model: DLRM, dataset: Dataset, device: torch.device) -> dict[str, dict[str, float]]:
    """Metrics on validation, each half calibrated by a fit on the other."""
    parts = scores(model, dataset.split("validation"), 8192, device)
    logits, labels = (torch.cat(x).numpy() for x in zip(*parts, strict=True))
    half = np.arange(len(labels)) % 2 == 0
    found = {}
    for kind in CALIBRATIONS:
        state = Evaluation()
        for own in (half, ~half):
            others = (x[~own].astype(np.float64) for x in (logits, labels))
            fitted = fit_calibration(kind, *others)
            state.update(served_logits(fitted, logits[own]), labels[own])
        values = state.compute()
        found[kind] = {"auc": values.auc or 0.0, "log_loss": values.log_loss}
    return found


def summary(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each variant and split: means, and mean differences to both ends with 95 % intervals."""
    by_place: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for s in samples:
        by_place.setdefault((s["split"], s["axis"], s["variant"]), {})[s["seed"]] = s
    lines = []
    for (split, axis, name), own in by_place.items():
        line: dict[str, Any] = {"split": split, "axis": axis, "variant": name}
        for metric in ("auc", "log_loss"):
            line[metric] = statistics.mean(s[metric] for s in own.values())
            for end in (PLAIN, PRESET):
                other = by_place[split, "", end]
                pairs = [own[seed][metric] - other[seed][metric] for seed in own]
                line[f"{metric} - {end}"] = interval(pairs)
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=sorted(RATES))
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--generate", type=int, default=0, help="rows of a generated log as input")
    parser.add_argument("--axis", action="append", default=[], help="of the ablation; all if none")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(2, len(SEEDS) + 1))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, inputs = Path(name), options.inputs
        config = {"preset": options.preset, "rows": options.generate}
        if options.generate:
            log = generate(
                folder / "log", num_rows=options.generate, num_files=4, gzip=False, seed=7
            )
            config["best_auc"] = log.auc
            inputs = [str(folder / "log" / "day_*")]
        bench = Bench(options.preset, expand_inputs(inputs), folder)
        samples: list[dict[str, Any]] = []
        for seed in SEEDS[: options.seeds]:
            for variant in variants(options.preset, options.axis):
                for sample in bench.measure(variant, seed):
                    samples.append(sample)
                    print(sample, flush=True)
            if seed > SEEDS[0]:
                print(
                    write(f"recipe-{options.preset}", config, samples, {"lines": summary(samples)})
                )


if __name__ == "__main__":
    main()
