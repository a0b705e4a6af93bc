"""Milliseconds of one training step on several ranks: tables shared out, MLPs replicated.

Run by torchrun, or alone for one rank. Every rank draws its own batches on its device. Prints
samples/s over all ranks, the time in collectives, and the part of it beside which nothing else ran.

Usage: torchrun --nproc-per-node 2 benchmarks/bench_parallel.py --shape criteo-terabyte-10m \
    --local-batch 8192 --precision bf16 --save
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
from breakdown import breakdown, exposed
from results_file import write
from shapes import SHAPES, Shape, around, build_model, draw_batches, train_config
from torch.profiler import ProfilerActivity, profile

from fastdlrm.model.dlrm import DLRM
from fastdlrm.parallel.plan import ShardingPlan, data_parallel, read_plan, table_wise
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.world import World
from fastdlrm.train.step import TrainStep

NUM_BATCHES = 8
BLOCK = 20
NUM_BLOCKS = 15


def main() -> None:
    args = arguments()
    device = torch.device("cuda")
    with World.of_environment(device) as world:
        shape = SHAPES[args.shape]
        plan = read_plan(args.plan) if args.plan else deal(shape, world.size, args.replicate)
        model = make_model(shape, plan, world, device)
        batches = draw_batches(shape, args.local_batch, NUM_BATCHES, device, seed=1 + world.rank)
        config = train_config(args.local_batch * world.size, args.precision)
        step = TrainStep(model.train(), config, world)
        total = args.local_batch * world.size

        def run(k: int) -> None:
            step(batches[k % NUM_BATCHES], k, total)

        samples = time_blocks(run, world, device)
        found = collectives(run, device)
        shares = breakdown(run, device)
        step.close()
        result = summary(args, world, samples, found) | {"breakdown": shares}
        result["why_no_graph"] = step.why_no_graph
        if device.type == "cuda":
            result["most_bytes"] = torch.cuda.max_memory_allocated()
        if world.is_first:
            if args.save:
                name = f"parallel-{device.type}-{args.shape}-{world.size}x{args.local_batch}"
                print(write(f"{name}-{args.precision}", vars(args), samples, result))
            print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--local-batch", type=int, required=True, help="samples a step and rank")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--plan", type=Path, help="a plan's file; default: tables dealt by size")
    parser.add_argument(
        "--replicate", type=int, default=0, help="tables of at most as many rows on every rank"
    )
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    return parser.parse_args()


def deal(shape: Shape, world_size: int, replicate: int) -> ShardingPlan:
    """Whole tables by falling size, to rank 0, 1, .. W - 1, W - 1, .. 0, and again."""
    order = [*range(world_size), *reversed(range(world_size))]
    by_size = sorted(shape.num_embeddings.items(), key=lambda item: -item[1])
    tables = {
        name: data_parallel()
        if rows <= replicate
        else table_wise(rows, shape.dim, order[i % len(order)])
        for i, (name, rows) in enumerate(by_size)
    }
    return ShardingPlan(
        world_size=world_size,
        embedding_dim=shape.dim,
        num_embeddings=shape.num_embeddings,
        tables={name: tables[name] for name in shape.num_embeddings},
    )


def make_model(shape: Shape, plan: ShardingPlan, world: World, device: torch.device) -> DLRM:
    """The benchmarks' model; on several ranks each draws its own part of the tables."""
    if world.size == 1:
        return build_model(shape, device)
    names = list(shape.num_embeddings)
    tables = ShardedTables(plan, names, world, device=device)
    generator = torch.Generator(device).manual_seed(world.rank)
    with torch.no_grad():
        for stack in tables.placement.stacks[:-1]:
            stack.weight.uniform_(-0.01, 0.01, generator=generator)
    return around(shape, tables, device)


def time_blocks(run: Any, world: World, device: torch.device) -> list[dict[str, float]]:
    """Blocks of steps, all ranks starting together; the slowest rank counts."""
    for k in range(6):
        run(k)
    samples = []
    for _ in range(NUM_BLOCKS):
        world.barrier()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        first.record()
        for k in range(BLOCK):
            run(k)
        last.record()
        torch.cuda.synchronize(device)
        samples.append({"ms": max(world.gather(first.elapsed_time(last) / BLOCK))})
    return samples


def collectives(run: Any, device: torch.device, steps: int = 5) -> dict[str, float]:
    """Time in NCCL's kernels a step, and of it what nothing else ran beside."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for k in range(steps):
            run(k)
        torch.cuda.synchronize(device)
    in_all, alone = exposed(profiler.events(), "nccl")
    return {"collectives_ms": in_all / steps, "exposed_ms": alone / steps}


def summary(
    args: argparse.Namespace,
    world: World,
    samples: list[dict[str, float]],
    found: dict[str, float],
) -> dict[str, Any]:
    """What the last line of stdout says."""
    ms = median(sample["ms"] for sample in samples)
    total = args.local_batch * world.size
    return {
        "shape": args.shape,
        "ranks": world.size,
        "local_batch": args.local_batch,
        "precision": args.precision,
        "gpu": torch.cuda.get_device_name(),
        "ms": ms,
        "samples_per_s": total / ms * 1e3,
        **found,
        "exposed_share": found["exposed_ms"] / ms,
    }


if __name__ == "__main__":
    main()
