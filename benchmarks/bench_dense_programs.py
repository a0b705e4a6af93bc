"""Milliseconds of one batch of an exported model, one thread, by what computes after the lookup.

Ways take turns in one process with the same weights and rows: eager torch in fp32, bf16 and int8,
torch.compile, AOTInductor, ONNX Runtime. Beside the time: AUC on the test split, the largest
difference of a logit from the float32 model's, and of a row's logit in batches of other sizes.

RUN is a run of the preset criteo-generated with bottom_mlp [512, 256, 64, 16] and top_mlp [512,
256], DATA its dataset, WORK a folder for the exported models.

Usage: python benchmarks/bench_dense_programs.py RUN DATA WORK --save
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_accuracy import fastdlrm
from results_file import write
from timing import System, conditions, interleave, load_average, medians
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.data.dataset import Dataset
from fastdlrm.export.model import ExportedModel
from fastdlrm.metrics.evaluation import Evaluation
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.run import Run

EXPORTS = (
    ("fp32", "eager"),
    ("bf16", "eager"),
    ("int8", "eager"),
    ("fp32", "onnx"),
    ("fp32", "aoti"),
)
"""MLPs, program; tables are float32 in all."""
BATCHES = (1, 16, 100, 256)
TEST_ROWS, CHUNK = 200_000, 4096
NUM_INPUTS = 16
NO_LIMIT = ("--max-auc-drop", "1", "--max-ne-rise", "1")
Way = Callable[[Batch], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing a batch size")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    load = load_average()
    torch.set_num_threads(1)
    ways = exported(args) | {"compile/fp32": compiled(Run.open(args.run).load_model().eval())}
    dataset = Dataset.open(args.data).split("test")
    count = min(len(dataset), TEST_ROWS)
    test = [dataset.batch(slice(at, min(at + CHUNK, count))) for at in range(0, count, CHUNK)]
    quality = compared(ways, test)
    samples: list[dict[str, Any]] = []
    result: dict[str, Any] = {"quality": quality, "ms": {}, "conditions": {}}
    for rows in BATCHES:
        parts = [test[0].slice(at * rows, (at + 1) * rows) for at in range(NUM_INPUTS)]
        found = interleave(systems(ways, parts), torch.device("cpu"), args.seconds)
        ms = {name.removesuffix("_ms"): value for name, value in medians(found).items()}
        result["ms"][rows] = ms
        result["conditions"][rows] = conditions(found, load)
        samples += [{"rows": rows, **sample} for sample in found]
        print(f"{rows:4} rows: " + "  ".join(f"{name} {value:.3f}" for name, value in ms.items()))
    print(json.dumps(quality, indent=2))
    if args.save:
        config = {"batches": BATCHES, "test_rows": count, "threads": 1, "tables": "fp32"}
        print(write("dense-programs", config, samples, result))


def exported(args: argparse.Namespace) -> dict[str, Way]:
    """Each way that a model can be exported with; folders that are there are taken as they are."""
    ways: dict[str, Way] = {}
    for mlp, program in EXPORTS:
        folder = args.work / f"fp32-{mlp}-{program}"
        if not folder.is_dir():
            chosen = ("--mlp", mlp, "--program", program, *NO_LIMIT)
            places = ("--run", args.run, "--data", args.data, "--out", folder)
            fastdlrm("export", *map(str, places), *chosen)
        ways[f"{program}/{mlp}"] = ExportedModel.load(folder).logits
    return ways


def compiled(model: DLRM) -> Way:
    """torch.compile of everything after the lookup, for any batch size."""
    head = torch.compile(model.head, dynamic=True)

    def run(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return head(batch.dense, model.tables(batch.sparse, torch.float32))

    return run


def systems(ways: dict[str, Way], inputs: list[Batch]) -> list[System]:
    """Every way over the same batches, one after the other."""
    return [
        System(name, lambda k, way=way: way(inputs[k % len(inputs)])) for name, way in ways.items()
    ]


def compared(ways: dict[str, Way], test: list[Batch]) -> dict[str, dict[str, float]]:
    """AUC and differences of each way on the test split."""
    labels = torch.cat([batch.labels for batch in test]).numpy()
    expected = torch.cat([ways["eager/fp32"](batch) for batch in test])
    found: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        logits = torch.cat([way(batch) for batch in test])
        state = Evaluation()
        state.update(logits.numpy(), labels)
        moved = [(way(test[0].slice(0, n)) - logits[:n]).abs().max().item() for n in BATCHES]
        found[name] = {
            "auc": state.compute().auc,
            "max_logit_difference": (logits - expected).abs().max().item(),
            "max_batch_difference": max(moved),
        }
    return found


if __name__ == "__main__":
    main()
