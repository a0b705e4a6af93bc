"""Milliseconds of one training step on several ranks, for several plans of the same tables.

Run by torchrun, or alone for one rank. Every rank draws its own batches on its device. For each
plan: the step beside what the cost model predicted (with the rates known of the card and with rates
measured in this run), memory likewise, and on GPUs the time in collectives and the part of it
beside which nothing else ran. `planned` is the planner's own plan, `round_robin` deals whole tables
in order, the rest shard every table in one way. Plans that do not fit are left out and named.

Usage: torchrun --nproc-per-node 2 benchmarks/bench_parallel.py --shape criteo-terabyte-10m \
    --local-batch 8192 --precision bf16 --plans planned round_robin --save
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from results_file import write
from shapes import SHAPES, Shape, around, build_model, draw_batches, train_config
from torch.profiler import ProfilerActivity, profile

from fastdlrm.batch import Batch
from fastdlrm.bench.breakdown import breakdown, exposed
from fastdlrm.errors import PlanError
from fastdlrm.model.dlrm import DLRM
from fastdlrm.parallel.measure import measure_topology
from fastdlrm.parallel.plan import (
    ShardingPlan,
    column_wise,
    data_parallel,
    round_robin,
    row_wise,
)
from fastdlrm.parallel.planner import make_plan
from fastdlrm.parallel.prediction import predict
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.topology import Topology, card_topology, named_topology
from fastdlrm.parallel.workload import Feature, Workload
from fastdlrm.parallel.world import World
from fastdlrm.train.step import TrainStep
from fastdlrm.train.workload import joint_work, shares_of

NUM_BATCHES = 8
BLOCK = {"cuda": 20, "cpu": 3}
NUM_BLOCKS = 15
PLANS = ("planned", "round_robin", "row_wise", "column_wise", "data_parallel")


def main() -> None:
    args = arguments()
    device, shape = torch.device(args.device), SHAPES[args.shape]
    with World.of_environment(device) as world:
        batches = draw_batches(shape, args.local_batch, NUM_BATCHES, device, seed=1 + world.rank)
        work = workload(shape, batches[0], args, world)
        measured = measure_topology(world, device)
        known = named_topology("cpu")
        if device.type == "cuda":
            card = card_topology(torch.cuda.get_device_name(), world.size, world.local_size)
            known = card or measured
        results, samples = {}, []
        for name in args.plans if world.size > 1 else ("planned",):
            try:
                plan = world.on_first(partial(plan_of, name, work, known, world))
            except PlanError as problem:
                results[name] = {"left_out": str(problem).splitlines()[0]}
                continue
            found, times = run_plan(plan, shape, batches, args, world)
            for key, topology in (("known", known), ("measured", measured)):
                prediction = predict(plan, work, topology)
                found[f"predicted_{key}_ms"] = prediction.step_s * 1e3
                found[f"off_{key}"] = found["ms"] / found[f"predicted_{key}_ms"] - 1
                found["predicted_bytes"] = prediction.most_bytes
            results[name] = found
            samples += [{"plan": name, **sample} for sample in times]
        if world.is_first:
            report(args, world, results, samples, known, measured)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--local-batch", type=int, required=True, help="samples a step and rank")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=["planned"])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results")
    return parser.parse_args()


def workload(shape: Shape, batch: Batch, args: argparse.Namespace, world: World) -> Workload:
    """A step of the benchmark, as the planner takes it."""
    sizes = [batch.num_samples * size for size in shape.bag_sizes]
    ids = batch.sparse.ids.cpu().long().split(sizes)
    features = tuple(
        Feature(
            table=table,
            ids_per_sample=size,
            is_bag=max(shape.bag_sizes) > 1,
            shares=shares_of(of_feature.numpy()),
        )
        for table, size, of_feature in zip(shape.num_embeddings, shape.bag_sizes, ids, strict=True)
    )
    return Workload(
        num_embeddings=shape.num_embeddings,
        features=features,
        embedding_dim=shape.dim,
        bottom_mlp=(shape.num_dense, *shape.bottom),
        top_mlp=(shape.top_input, *shape.top, 1),
        interaction=joint_work(shape.interaction()),
        global_batch_size=args.local_batch * world.size,
        precision=args.precision,
        sparse_optimizer=shape.sparse_rule,
    )


def plan_of(name: str, work: Workload, topology: Topology, world: World) -> ShardingPlan:
    """A plan by name, if it fits the memory."""
    sizes, D, ranks = work.num_embeddings, work.embedding_dim, list(range(world.size))
    if name == "planned":
        return make_plan(work, topology, world.size)
    if name == "round_robin":
        plan = round_robin(sizes, D, world.size)
    else:
        make: dict[str, Callable[[int], Any]] = {
            "row_wise": lambda rows: row_wise(rows, D, ranks),
            "column_wise": lambda rows: column_wise(rows, D, ranks),
            "data_parallel": lambda rows: data_parallel(),
        }
        tables = {table: make[name](rows) for table, rows in sizes.items()}
        plan = ShardingPlan(
            world_size=world.size, embedding_dim=D, num_embeddings=sizes, tables=tables
        )
    needed = predict(plan, work, topology).most_bytes
    if needed > topology.memory_bytes:
        raise PlanError(f"{needed / 2**30:.0f} GiB a rank are needed")
    return plan


def run_plan(
    plan: ShardingPlan,
    shape: Shape,
    batches: list[Batch],
    args: argparse.Namespace,
    world: World,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Time one plan; what was found, and the raw samples."""
    device, total = torch.device(args.device), args.local_batch * world.size
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = make_model(shape, plan, world, device)
    step = TrainStep(model.train(), train_config(total, args.precision, shape.sparse_rule), world)

    def run(k: int) -> None:
        step(batches[k % NUM_BATCHES], k, total)

    samples = time_blocks(run, world, device)
    ms = median(sample["ms"] for sample in samples)
    found: dict[str, Any] = {"ms": ms, "samples_per_s": total / ms * 1e3}
    if device.type == "cuda":
        found |= collectives(run, device)
        found["exposed_share"] = found["exposed_ms"] / ms
        found["most_bytes"] = max(world.gather(torch.cuda.max_memory_allocated()))
    found["breakdown"] = breakdown(run, device)
    found["why_no_graph"] = step.why_no_graph
    found["shardings"] = {name: table.sharding for name, table in plan.tables.items()}
    step.close()
    return found, samples


def make_model(shape: Shape, plan: ShardingPlan, world: World, device: torch.device) -> DLRM:
    """The benchmarks' model; on several ranks each draws its own part of the tables."""
    if world.size == 1:
        return build_model(shape, device)
    tables = ShardedTables(plan, list(shape.num_embeddings), world, device=device)
    generator = torch.Generator(device).manual_seed(world.rank)
    with torch.no_grad():
        for stack in tables.placement.stacks[:-1]:
            stack.weight.uniform_(-0.01, 0.01, generator=generator)
    return around(shape, tables, device)


def time_blocks(
    run: Callable[[int], None], world: World, device: torch.device
) -> list[dict[str, float]]:
    """Blocks of steps, all ranks starting together; the slowest rank counts."""
    size = BLOCK[device.type]

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for k in range(6):
        run(k)
    samples = []
    for _ in range(NUM_BLOCKS):
        wait()
        world.barrier()
        began = time.perf_counter_ns()
        for k in range(size):
            run(k)
        wait()
        samples.append({"ms": max(world.gather((time.perf_counter_ns() - began) / 1e6 / size))})
    return samples


def collectives(
    run: Callable[[int], None], device: torch.device, steps: int = 5
) -> dict[str, float]:
    """Time in NCCL's kernels a step, and of it what nothing else ran beside."""
    run(0)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for k in range(steps):
            run(k)
        torch.cuda.synchronize(device)
    in_all, alone = exposed(profiler.events(), "nccl")
    return {"collectives_ms": in_all / steps, "exposed_ms": alone / steps}


def report(
    args: argparse.Namespace,
    world: World,
    results: dict[str, Any],
    samples: list[dict[str, Any]],
    known: Topology,
    measured: Topology,
) -> None:
    """Write the results; the last line of stdout says them."""
    result = {
        "shape": args.shape,
        "ranks": world.size,
        "local_batch": args.local_batch,
        "precision": args.precision,
        "device": args.device,
        "plans": results,
        "known": known.name,
        "rates": {name: getattr(measured, name) for name in measured.__struct_fields__},
    }
    if args.save:
        name = f"parallel-{args.device}-{args.shape}-{world.size}x{args.local_batch}"
        print(write(f"{name}-{args.precision}", vars(args), samples, result))
    for name, found in results.items():
        if "ms" in found:
            print(
                f"{name:<14} {found['ms']:.3f} ms, {found['samples_per_s'] / 1e6:.2f} M samples/s, "
                f"predicted {found['predicted_known_ms']:.3f} / "
                f"{found['predicted_measured_ms']:.3f}, memory "
                f"{found.get('most_bytes', 0) / 2**30:.2f} predicted "
                f"{found['predicted_bytes'] / 2**30:.2f} GiB, collectives "
                f"{found.get('collectives_ms', 0):.3f} exposed {found.get('exposed_ms', 0):.3f}"
            )
        else:
            print(name, found["left_out"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
