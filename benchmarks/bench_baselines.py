"""Test metrics of DLRM and of what it is compared with, on the same rows, seeds and optimizers.

Every model has the preset's [train] section and keys of [model] but for those of `settings`: what
differs is the model. Prints the means and their 95 % intervals (Student's t).

Usage: python benchmarks/bench_baselines.py criteo-sample 'DIR/day_*.gz'
       python benchmarks/bench_baselines.py adult DIR/adult.data.gz DIR/adult.test.gz
       python benchmarks/bench_baselines.py criteo-generated --generate 300000
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench_accuracy import SEEDS, SHOWN, prepared
from bench_precision import interval
from results_file import write

from fastdlrm.config import load_config, to_tree
from fastdlrm.data.dataset import Dataset
from fastdlrm.model.config import ModelConfig
from fastdlrm.train.device import scoring_device
from fastdlrm.train.evaluate import evaluate
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer


def settings(model: ModelConfig) -> dict[str, dict[str, Any]]:
    """Keys of [model] by model, where they are not the preset's.

    Args:
        model: The preset's; MLPs are as wide in all.
    """
    no_cross = {"num_cross_layers": 0, "cross_rank": 0}
    linear = {"bottom_mlp": [model.embedding_dim], "bottom_relu": False, "top_mlp": []}
    deep = {"deep_mlp": list(model.top_mlp)}
    # weights and factors begin near 0, or those of rare ids would be noise in the logit
    fm = {"interaction": "fm", **no_cross, **linear, "init": "normal", "embedding_std": 0.01}
    layers = {"num_cross_layers": 6, "cross_rank": 0}
    wanted = {
        "lr": {**fm, "embedding_dim": 1, "bottom_mlp": [1]},
        "fm": fm,
        "mlp": {"interaction": "cat", **no_cross},
        "deepfm": {**fm, **deep},
        "dcn": {"interaction": "cross_vector", **layers, **linear, **deep},
        "dcnv2": {"interaction": "cross", "num_cross_layers": 3, "cross_rank": 64},
        "dlrm": {"interaction": "dot", **no_cross},
    }
    preset = to_tree(model)
    return {
        name: {key: value for key, value in keys.items() if value != preset[key]}
        for name, keys in wanted.items()
    }


def overrides(keys: dict[str, Any]) -> list[str]:
    """What `--set` takes."""
    return [f"model.{key}={json.dumps(value)}" for key, value in keys.items()]


def trained(folder: Path, preset: str, model: str, seed: int, keys: list[str]) -> dict[str, Any]:
    """Train a model on `folder`/data; test metrics of its best step, and how large it is."""
    dataset = Dataset.open(folder / "data")
    recipe = load_config(preset, Recipe, [f"seed={seed}", *keys])
    run = Run.create(folder / f"{model}-{seed}", recipe, dataset)
    result = Trainer(run, dataset, lambda progress: None, lambda message: None).train()
    if not result.is_finished:
        sys.exit("stopped by a signal; nothing is written")
    device = scoring_device(run.recipe.train.device)
    best = run.load_model("best").to(device)
    values = evaluate(best, dataset.split("test"), run.recipe.train.eval_batch_size, device)
    sample = {
        "model": model,
        "seed": seed,
        "best_step": result.best_step,
        "num_parameters": sum(parameter.numel() for parameter in best.parameters()),
        "num_dense_parameters": sum(x.numel() for x in best.dense_parameters().values()),
        **{name: getattr(values, name) for name in SHOWN},
    }
    print(sample, flush=True)
    return sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--generate", type=int, default=0, help="rows of a generated log as input")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many, 2 to 5")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    options = parser.parse_args()
    preset = options.preset
    models = settings(load_config(preset, Recipe).model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(folder, preset, options.inputs, options.generate)
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            runs = [
                pool.submit(trained, folder, preset, model, seed, overrides(keys))
                for seed in SEEDS[: options.seeds]
                for model, keys in models.items()
            ]
            samples = [run.result() for run in runs]
        teacher = folder / "log" / "teacher.json"
        best = json.loads(teacher.read_text())["auc"] if options.generate else None
    result = {model: summary([s for s in samples if s["model"] == model]) for model in models}
    for model, found in result.items():
        means = (f"{k} {found[k]['mean']:.4f} +- {found[k]['half']:.4f}" for k in ("auc", "ne"))
        print(f"{preset}: {model}: {', '.join(means)}")
    inputs = [Path(path).name for path in options.inputs]
    config = {"preset": preset, "inputs": inputs, "rows": options.generate, "best_auc": best}
    print(write(f"baselines-{preset}", {**config, "settings": models}, samples, result))


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds and half the width of their intervals; sizes."""
    found: dict[str, Any] = {
        name: samples[0][name] for name in ("num_parameters", "num_dense_parameters")
    }
    for name in ("auc", "ne", "log_loss"):
        found[name] = interval([sample[name] for sample in samples])
    return found


if __name__ == "__main__":
    main()
