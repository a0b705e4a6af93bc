"""The tables of the docs that tell of exported models and their server."""

from typing import Any

from results_file import RESULTS, load, where

PEER_WORDS = (
    "Queries of 100 candidates of the dim-16 Criteo shape arrive as a Poisson process; capacity "
    "is the last rate of a ladder, each a quarter above the one before, with p99 within 25 ms; "
    "generator and server share the cores. A rung has some 300 queries, fewer below 20/s: its p99 "
    "rests on the latest three."
)


def export_precision() -> str:
    """What a precision costs on test."""
    lines = [
        "| data | tables | MLPs | tables smaller | AUC change, largest of the seeds | NE change |",
        "|---|---|---|---|---|---|",
    ]
    names = sorted(path.stem for path in RESULTS.glob("export-precision-*.json"))
    for name in names:
        for precision, found in load(name)["result"].items():
            tables, mlp = precision.split("/")
            lines.append(
                f"| {name.removeprefix('export-precision-')} | {tables} | {mlp} "
                f"| {found['times_smaller']:.2f}x | {found['largest_auc_change']:+.6f} "
                f"| {found['largest_ne_change']:+.4%} |"
            )
    machines = " ".join(dict.fromkeys(map(where, names)))
    return "\n".join([*lines, "", f"Against the float32 model of the same seed. {machines}"])


def serving_variants() -> str:
    """Capacity and latency of each way of computing."""
    content = load("serving-variants")
    lines = [
        "| tables | MLPs | program | AUC | capacity, queries/s | p50 ms | p99 ms at half of it |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['tables']} | {row['mlp']} | {row['program']} | {row['auc']:.6f} "
        f"| {row['capacity_qps']:,.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |"
        for row in content["samples"]
    ]
    return "\n".join([*lines, "", _load_words(content), where("serving-variants")])


def serving_peers() -> str:
    """Other servers of the same model."""
    content = load("serving-peers")
    best = max(s["capacity_qps"] for s in content["samples"] if s["server"] != "fastdlrm")
    lines = [
        "| server | body | capacity, queries/s | against the best other | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["samples"]:
        lowest = row["rungs"][0]
        latency, qps = lowest["latency_ms"], row["capacity_qps"]
        if qps:
            found = f"{qps:,.0f} | {qps / best:.1f}x | {row['p50_ms']:.2f} | {row['p99_ms']:.2f}"
        else:
            at = f"at {lowest['rate']:.0f}/s"
            found = f"below {lowest['rate']:.0f} | | {latency['p50']:.2f} {at} "
            found += f"| {latency['p99']:.2f} {at}"
        lines.append(f"| {row['server']} | {row['body']} | {found} |")
    return "\n".join([*lines, "", PEER_WORDS, where("serving-peers")])


def serving_overload() -> str:
    """Twice the capacity, and versions swapped under load."""
    over, swap = load("serving-overload")["result"], load("serving-swap")["result"]
    memory = over["memory_mib"]
    refused = ", ".join(f"{count:,} {kind}" for kind, count in over["failures"].items())
    quiet, with_swaps = swap["without"], swap["with_swaps"]
    failed = sum(with_swaps["failures"].values()) + with_swaps["num_unfinished"]
    lines = [
        "| what | found |",
        "|---|---|",
        f"| offered, {over['offered_qps'] / over['capacity_qps']:.1f} times the capacity "
        f"| {over['offered_qps']:,.0f} queries/s |",
        f"| answered | {over['goodput_qps']:,.0f} queries/s, "
        f"{over['goodput_share_of_capacity']:.0%} of the capacity |",
        f"| p99 of those answered | {over['latency_ms']['p99']:.1f} ms |",
        f"| the others | {refused} |",
        f"| memory before, at most, after | {memory['before']:.0f}, {memory['largest']:.0f}, "
        f"{memory['after']:.0f} MiB |",
        f"| p99 at half of the capacity, without and with swaps "
        f"| {quiet['latency_ms']['p99']:.2f}, {with_swaps['latency_ms']['p99']:.2f} ms |",
        f"| requests that failed while {len(swap['swaps'])} versions were swapped | {failed} |",
    ]
    return "\n".join([*lines, "", where("serving-overload")])


def _load_words(content: dict[str, Any]) -> str:
    config = content["config"]
    return (
        f"Queries of {config['candidates']} candidates of the dim-16 Criteo shape arrive as a "
        f"Poisson process; capacity is the highest rate with p99 within {config['sla_ms']:g} ms; "
        f"{config['workers']} workers; the generator runs on the same cores."
    )
