"""Milliseconds of one forward pass on one device: ours, plain PyTorch, TorchRec.

As in bench_train_step.py: one process, in turn, the same batches. `plain` is the reference's way
of computing, in float32, under `torch.no_grad`; all systems end in probabilities.

Usage: python benchmarks/bench_inference.py --shape criteo-kaggle-1m --batch 128 --save
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from floors import ceilings, floor_ms, work
from plain import Inputs, PlainDLRM, plain_inputs
from results_file import write
from shapes import SHAPES, build_model, draw_batches
from show import show
from timing import System, conditions, interleave, load_average, medians
from torchrec_step import is_available, torchrec_forward

from fastdlrm.batch import Batch
from fastdlrm.bench.breakdown import breakdown
from fastdlrm.kernels.cpu.matmul import PRECISIONS, calibrate
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.predictor import Predictor

NUM_BATCHES = 16


def main() -> None:
    args = arguments()
    device, shape = torch.device(args.device), SHAPES[args.shape]
    load = load_average()
    batches = draw_batches(shape, args.batch, NUM_BATCHES, device)
    model = build_model(shape, device).eval()
    inputs = [plain_inputs(shape, batch) for batch in batches]
    plain = PlainDLRM(shape, model).eval()
    precision = PRECISIONS[calibrate().way] if args.device == "cpu" else "highest"
    ours = System("ours", our_forward(model, batches, args.precision), precision)
    systems = [ours, System("plain", plain_forward(plain, inputs))]
    if is_available() and not args.no_torchrec:
        autocast = torch.bfloat16 if args.precision == "bf16" else None
        systems.append(System("torchrec", torchrec_forward(shape, batches, device, autocast)))
    found = ceilings(shape, device)
    samples = interleave(systems, device, args.seconds)
    torch.set_float32_matmul_precision(ours.float32_precision)
    median, ms = medians(samples), medians(samples)["ours_ms"]
    counted = work(shape, batches, is_training=False, precision=args.precision)
    floor = floor_ms(counted, found, args.precision)
    result: dict[str, Any] = {
        "shape": args.shape,
        "batch": args.batch,
        "device": args.device,
        "precision": args.precision,
        "float32_precision": ours.float32_precision,
        "ms": ms,
        "samples_per_s": args.batch / ms * 1e3,
        "ratio_to_plain": median["plain_ms"] / ms,
        "ratio_to_torchrec": median["torchrec_ms"] / ms if "torchrec_ms" in median else None,
        "share_of_floor": floor / ms,
        "floor_ms": floor,
        "ms_by_system": median,
        "ceilings": found,
        "work": counted,
        "breakdown": breakdown(ours.step, device),
    }
    result |= conditions(samples, load)
    if args.save:
        name = f"inference-{args.device}-{args.shape}-{args.batch}-{args.precision}"
        print(write(name, vars(args), samples, result))
    if not args.json:
        show(result)
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples a forward pass")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, about")
    parser.add_argument("--no-torchrec", action="store_true", help="leave TorchRec out")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    parser.add_argument("--json", action="store_true", help="no tables before the JSON line")
    return parser.parse_args()


def our_forward(model: DLRM, batches: list[Batch], precision: str) -> Callable[[int], None]:
    """The project's own prediction."""
    predictor = Predictor(model, torch.bfloat16 if precision == "bf16" else torch.float32)

    def forward(k: int) -> None:
        batch = batches[k % len(batches)]
        with torch.inference_mode():
            torch.sigmoid(predictor(batch.dense, batch.sparse))

    return forward


def plain_forward(model: PlainDLRM, inputs: list[Inputs]) -> Callable[[int], None]:
    """The reference's way."""

    def forward(k: int) -> None:
        dense, ids, offsets, _ = inputs[k % len(inputs)]
        with torch.no_grad():
            model(dense, ids, offsets)

    return forward


if __name__ == "__main__":
    main()
