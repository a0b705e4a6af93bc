"""Milliseconds of one training step on one device: ours, plain PyTorch, TorchRec.

All systems run in one process, in turn, over the same batches; ratios and medians are of that run.
`plain` is the reference's way of computing with SGD (see plain.py), in float32; on a GPU also in
tf32 and under bf16 autocast, and `ratio_to_plain` is to the fastest of them. Where the tables'
optimizer is row-wise Adagrad, `plain_rowwise_adagrad` is the reference's.

Usage: python benchmarks/bench_train_step.py --shape criteo-kaggle-1m --batch 128 --save
"""

import argparse
import json
from typing import Any

import torch
from floors import ceilings, floor_ms, work
from plain import PlainDLRM, plain_inputs, plain_step
from results_file import write
from shapes import SHAPES, Shape, build_model, draw_batches, train_config
from show import show
from timing import System, conditions, interleave, load_average, medians
from torchrec_step import is_available, torchrec_step

from fastdlrm.batch import Batch
from fastdlrm.bench.breakdown import breakdown
from fastdlrm.kernels.cpu.matmul import PRECISIONS, calibrate
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.step import TrainStep

NUM_BATCHES = 16


def main() -> None:
    args = arguments()
    device, shape = torch.device(args.device), SHAPES[args.shape]
    load = load_average()
    batches = draw_batches(shape, args.batch, NUM_BATCHES, device)
    model = build_model(shape, device)
    ours = our_system(model, batches, args)
    systems = [ours, *plain_systems(shape, model, batches, args)]
    if is_available() and not args.no_torchrec:
        autocast = torch.bfloat16 if args.precision == "bf16" else None
        step = torchrec_step(shape, batches, args.sparse_optimizer, device, autocast)
        precision = "high" if args.precision == "tf32" else "highest"
        systems.append(System("torchrec", step, precision))
    found = ceilings(shape, device)
    samples = interleave(systems, device, args.seconds)
    torch.set_float32_matmul_precision(ours.float32_precision)
    result = summary(
        args,
        medians(samples),
        found,
        work(shape, batches, is_training=True, precision=args.precision),
    )
    result["breakdown"] = breakdown(ours.step, device)
    result |= conditions(samples, load)
    if args.save:
        name = f"train-{args.device}-{args.shape}-{args.batch}-{args.precision}"
        default = args.sparse_optimizer == shape.sparse_rule
        name += "" if default else f"-{args.sparse_optimizer}"
        print(write(name, vars(args), samples, result))
    if not args.json:
        show(result)
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples a step")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument(
        "--sparse-optimizer", choices=("sgd", "rowwise_adagrad"), help="default: the shape's"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, about")
    parser.add_argument("--no-torchrec", action="store_true", help="leave TorchRec out")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    parser.add_argument("--json", action="store_true", help="no tables before the JSON line")
    args = parser.parse_args()
    args.sparse_optimizer = args.sparse_optimizer or SHAPES[args.shape].sparse_rule
    return args


def our_system(model: DLRM, batches: list[Batch], args: argparse.Namespace) -> System:
    """The project's own train step."""
    config = train_config(args.batch, args.precision, args.sparse_optimizer)
    step = TrainStep(model.train(), config)
    return System("ours", lambda k: step(batches[k % len(batches)], k), _float32(args))


def plain_systems(
    shape: Shape, model: DLRM, batches: list[Batch], args: argparse.Namespace
) -> list[System]:
    """The reference's way, in the precisions and with the optimizers of interest."""
    inputs = [plain_inputs(shape, batch) for batch in batches]

    def system(name: str, rule: str, precision: str) -> System:
        plain = PlainDLRM(shape, model)
        autocast = torch.bfloat16 if precision == "bf16" else None
        step = plain_step(plain, inputs, rule, autocast)
        return System(name, step, "high" if precision == "tf32" else "highest")

    systems = [system("plain", "sgd", "fp32")]
    if args.device == "cuda":
        systems += [system(f"plain_{p}", "sgd", p) for p in ("tf32", "bf16")]
    elif args.precision == "bf16":
        systems.append(system("plain_autocast", "sgd", "bf16"))
    if args.sparse_optimizer == "rowwise_adagrad":
        systems.append(system("plain_rowwise_adagrad", "rowwise_adagrad", "fp32"))
    return systems


def summary(
    args: argparse.Namespace,
    median: dict[str, float],
    found: dict[str, float],
    counted: dict[str, float],
) -> dict[str, Any]:
    """What the last line of stdout says, but for the breakdown."""
    ms = median["ours_ms"]
    rivals = ("plain_ms", "plain_tf32_ms", "plain_bf16_ms")
    plain = min(median[name] for name in rivals if name in median)
    floor = floor_ms(counted, found, args.precision)
    return {
        "shape": args.shape,
        "batch": args.batch,
        "device": args.device,
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "precision": args.precision,
        "float32_precision": torch.get_float32_matmul_precision(),
        "sparse_optimizer": args.sparse_optimizer,
        "ms": ms,
        "samples_per_s": args.batch / ms * 1e3,
        "ratio_to_plain": plain / ms,
        "ratio_to_torchrec": median["torchrec_ms"] / ms if "torchrec_ms" in median else None,
        "share_of_floor": floor / ms,
        "floor_ms": floor,
        "ms_by_system": median,
        "ratios": {name.removesuffix("_ms"): value / ms for name, value in median.items()},
        "ceilings": found,
        "work": counted,
    }


def _float32(args: argparse.Namespace) -> str:
    """What our `float32` matrix products are computed in: on the CPU as `train` would choose."""
    if args.device == "cpu":
        return PRECISIONS[calibrate().way]
    return "high" if args.precision == "tf32" else "highest"


if __name__ == "__main__":
    main()
