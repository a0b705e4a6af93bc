"""Plans and predicted steps on machines that are not here: the tables of docs/scaling.md.

Nothing is measured: `fastdlrm.parallel`'s planner and cost model on named machines. `make docs`
renders the tables; this prints them.

Usage: python benchmarks/simulate_scaling.py
"""

import json
import statistics
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import msgspec
from results_file import RESULTS
from shapes import SHAPES, TERABYTE_ROWS, Shape

from fastdlrm.parallel.plan import ShardingPlan, round_robin
from fastdlrm.parallel.planner import make_plan
from fastdlrm.parallel.prediction import Prediction, RankCost, predict
from fastdlrm.parallel.topology import Topology, named_topology
from fastdlrm.parallel.workload import Feature, Interaction, Workload
from fastdlrm.train.workload import joint_work

DIM = 128

PUBLISHED = {
    ("mlperf-dcnv2", 8, 6912): "13.7 (HugeCTR)",
    ("mlperf-dcnv2", 64, 2112): "49.1 (HugeCTR)",
}
"""M samples/s on the same cards, by others, not run again."""
CASES = (
    ("criteo-terabyte-10m", "h100x1", 8192),
    ("criteo-terabyte-10m", "h200x2", 8192),
    ("criteo-terabyte-10m", "h200x2", 32768),
    ("criteo-terabyte-10m", "h100x8", 8192),
    ("criteo-terabyte-10m", "h100x8", 32768),
    ("criteo-terabyte-10m", "h100x64", 8192),
    ("mlperf-dcnv2", "h100x8", 6912),
    ("mlperf-dcnv2", "h100x64", 2112),
)
"""Workload, machine, samples a rank."""
SHOWN_BY_RANK = (CASES[3], CASES[6], CASES[5], CASES[7])


def criteo_terabyte(global_batch_size: int) -> Workload:
    """The shape that the benchmarks train, its ids as skewed as theirs: row R * u^3, u uniform."""
    shape = SHAPES["criteo-terabyte-10m"]
    return _workload(
        shape.rows,
        tuple(
            Feature(table=f"C{i + 1}", shares=_cubic_shares(rows))
            for i, rows in enumerate(shape.rows)
        ),
        top=(shape.top_input, *shape.top, 1),
        interaction=joint_work(shape.interaction()),
        global_batch_size=global_batch_size,
        sparse_optimizer=shape.sparse_rule,
    )


def mlperf_dcnv2(global_batch_size: int) -> Workload:
    """Multi-hot bags and a low-rank cross net of 27 x 128 inputs; every row as likely."""
    shape: Shape = SHAPES["mlperf-dcnv2-10m"]
    cross = shape.interaction()
    return _workload(
        tuple(min(rows, 40_000_000) for rows in TERABYTE_ROWS),
        tuple(
            Feature(table=f"C{i + 1}", ids_per_sample=float(ids), is_bag=True)
            for i, ids in enumerate(shape.bag_sizes)
        ),
        top=(cross.width, *shape.top, 1),
        interaction=joint_work(cross),
        global_batch_size=global_batch_size,
        sparse_optimizer="adagrad",
    )


def _workload(
    rows: tuple[int, ...],
    features: tuple[Feature, ...],
    *,
    top: tuple[int, ...],
    interaction: Interaction,
    global_batch_size: int,
    sparse_optimizer: str,
) -> Workload:
    return Workload(
        num_embeddings={f"C{i + 1}": count for i, count in enumerate(rows)},
        features=features,
        embedding_dim=DIM,
        bottom_mlp=(13, 512, 256, DIM),
        top_mlp=top,
        interaction=interaction,
        global_batch_size=global_batch_size,
        precision="bf16",
        sparse_optimizer=sparse_optimizer,
    )


def _cubic_shares(rows: int) -> tuple[float, ...]:
    """A row below x has the probability (x / R)^(1/3)."""
    edges = [min(2**k - 1, rows) for k in range(rows.bit_length() + 1)]
    return tuple((b / rows) ** (1 / 3) - (a / rows) ** (1 / 3) for a, b in pairwise(edges))


WORKLOADS = {"criteo-terabyte-10m": criteo_terabyte, "mlperf-dcnv2": mlperf_dcnv2}


@lru_cache
def simulate(name: str, machine: str, local: int) -> tuple[ShardingPlan, Prediction, Prediction]:
    """The plan made, what it will take, and what tables dealt out in turn would."""
    topology = named_topology(machine)
    workload = WORKLOADS[name](local * topology.num_ranks)
    plan = make_plan(workload, topology, topology.num_ranks)
    dealt = round_robin(workload.num_embeddings, DIM, topology.num_ranks)
    return plan, predict(plan, workload, topology), predict(dealt, workload, topology)


def scaling() -> str:
    """A line a case."""
    lines = [
        "| workload | machine | B | tables | fullest rank, GiB | ms | M samples/s "
        "| in communication | dealt in turn, ms | published, M samples/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, machine, local in CASES:
        plan, found, dealt = simulate(name, machine, local)
        counts = Counter(table.sharding for table in plan.tables.values())
        fits = dealt.most_bytes <= named_topology(machine).memory_bytes
        cells = [
            name,
            machine,
            f"{local:,}",
            ", ".join(f"{count} {sharding}" for sharding, count in sorted(counts.items())),
            f"{found.most_bytes / 2**30:.1f}",
            f"{found.step_s * 1e3:.3f}",
            f"{found.samples_per_s / 1e6:.1f}",
            f"{found.communication_share:.0%}",
            f"{dealt.step_s * 1e3:.3f}" if fits else "does not fit",
            PUBLISHED.get((name, found.world_size, local), ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scaling_ranks() -> str:
    """What each rank holds and does; of many, the least, the middle and the most."""
    parts = []
    for name, machine, local in SHOWN_BY_RANK:
        _, found, _ = simulate(name, machine, local)
        parts += [f"{name} on {machine}, B = {local:,}:", "", *_rank_lines(found.ranks), ""]
    return "\n".join(parts).rstrip()


def _rank_lines(ranks: tuple[RankCost, ...]) -> list[str]:
    lines = [
        "| rank | shards | tables, GiB | optimizer | MLPs | activations | buffers | total "
        "| rows read | moved, GB | sent, GB | ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    sizes = ("table", "state", "dense", "activation", "buffer", "total")
    rows = [
        (
            rank.num_shards,
            *(getattr(rank, f"{kind}_bytes") / 2**30 for kind in sizes),
            rank.lookups,
            rank.moved_bytes / 1e9,
            rank.sent_bytes / 1e9,
            rank.step_s * 1e3,
        )
        for rank in ranks
    ]
    named = {str(rank.rank): row for rank, row in zip(ranks, rows, strict=True)}
    if len(ranks) > 8:
        columns = list(zip(*rows, strict=True))
        ways = {"least": min, "median": statistics.median_low, "most": max}
        named = {way: tuple(map(pick, columns)) for way, pick in ways.items()}
    for label, row in named.items():
        shown = [f"{v:,}" if isinstance(v, int) else f"{v:.3f}" for v in row]
        lines.append(f"| {' | '.join([label, *shown])} |")
    return lines


def scaling_check() -> str:
    """One card: what the model says beside what was measured."""
    lines = ["| B | predicted, ms | measured, ms | |", "|---|---|---|---|"]
    topology = named_topology("h100x1")
    for local in (8192, 32768):
        result = RESULTS / f"train-cuda-criteo-terabyte-10m-{local}-bf16.json"
        measured = json.loads(result.read_text())["result"]["ms"]
        workload = criteo_terabyte(local)
        plan = round_robin(workload.num_embeddings, DIM, 1)
        predicted = predict(plan, workload, topology).step_s * 1e3
        error = predicted / measured - 1
        lines.append(f"| {local:,} | {predicted:.3f} | {measured:.3f} | {error:+.0%} |")
    return "\n".join(lines)


def machines() -> str:
    """The numbers of the named machines."""
    found = [named_topology(name) for name in ("h100x8", "h200x8", "cpu")]
    lines = ["| | h100 | h200 | cpu |", "|---|---|---|---|"]
    skipped = ("name", "device", "num_ranks")
    for field in msgspec.structs.fields(Topology):
        if field.name not in skipped:
            cells = [_shown(field.name, getattr(topology, field.name)) for topology in found]
            lines.append(f"| {field.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    return f"{value // 2**30} GiB" if name == "memory_bytes" else f"{value:g}"  # type: ignore[str-format]


def main() -> None:
    for render in (scaling_check, scaling, scaling_ranks, machines):
        print(render(), end="\n\n")


if __name__ == "__main__":
    main()
