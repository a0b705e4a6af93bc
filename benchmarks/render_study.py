"""Tables of the study of ten presets, and of the load generator held against known queues."""

from statistics import median
from typing import Any

from results_file import RESULTS, load, where
from run_study import MODELS

from fastdlrm.contracts.bench_result import BenchResult, read_result

BOUNDS = {"gather": "rows at random", "stream": "memory in order", "compute": "products"}


def study() -> str:
    """What each preset's inference spends its time on, and what is left to gain."""
    head = (
        "preset",
        "rows, scale",
        "batch",
        "samples/s",
        "embedding bags",
        "linear layers",
        "of the floor",
        "bound by",
        "a copy beside: times as slow",
        "queries/s within the SLA",
    )
    first = _result("rmc1", "operators")
    host = first.host.host
    return "\n".join(
        [
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *(_line(model.name) for model in MODELS),
            "",
            "Inference, float32, `--quick`: short and of one seed; searches of a rate repeat to a "
            f"third. {host.cpu_model.value}, {host.num_usable_cores.value} cores, server and "
            f"generator on the same; {first.started[:10]}, commit {first.commit[:7]}.",
        ]
    )


def load_honesty() -> str:
    """Each figure of the generator beside what it should be."""
    content = load("load-honesty")
    lines = ["| figure | measured | known | off by | within |", "|---|---|---|---|---|"]
    for row in content["samples"]:
        if row["kind"] in ("offset", "gaps"):
            continue
        bound = content["config"]["checks"][row["kind"]]
        kept = f"{bound:.0%}" if row["holds"] else f"**not** {bound:.0%}"
        numbers = f"{row['measured']:.4g} | {row['expected']:.4g}"
        lines.append(f"| {row['what']} | {numbers} | {row['deviation']:+.1%} | {kept} |")
    return "\n".join([*lines, "", where("load-honesty")])


def _line(name: str) -> str:
    operators = _result(name, "operators")
    size = max(int(one.key["batch_size"]) for one in operators.measurements)
    parts = {
        one.key["operator"]: one
        for one in operators.measurements
        if one.key["pass"] == "inference" and one.key["batch_size"] == str(size)
    }
    step = parts.pop("step")
    total = sum(one.summary.median for one in parts.values())
    share = {key: one.summary.median / total for key, one in parts.items()}
    roofline = _result(name, "roofline").roofline
    assert roofline is not None
    placed = max(
        (s for s in roofline.steps if s.kind == "inference"), key=lambda s: s.batch_size
    ).step
    copies = {one.key["copies"]: one.summary.mean for one in _result(name, "colocate").measurements}
    bounded = _result(name, "latency-bounded").latency_bounded
    assert bounded is not None
    best = max(bounded.rungs, key=lambda rung: median(rung.rates))
    doubt = ", invalid" if best.invalid else ""
    cells: list[Any] = [
        f"`{name}`",
        f"{operators.rows_scale:g}",
        size,
        f"{step.samples_per_s:,.0f}",
        f"{share['embedding_bag']:.0%}",
        f"{share['fc']:.0%}",
        f"{placed.floor_ms / placed.ms:.0%}",
        BOUNDS.get(placed.bound, placed.bound),
        f"{copies['2'] / copies['1']:.2f}",
        f"{median(best.rates):.1f} (p95 {bounded.sla_ms:g} ms, {bounded.sizes}{doubt})",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _result(name: str, subcommand: str) -> BenchResult:
    return read_result(RESULTS / f"bench-cpu-{name}-{subcommand}.json")
