"""Write the tables of the docs from benchmarks/results: the text between their `table` markers.

With --check nothing is written, and the exit status says whether all are up to date.
"""

import json
import re
import statistics
import sys
from typing import Any

from bench_precision import interval
from render_recipe import recipe_adult, recipe_criteo_generated, recipe_criteo_sample, recipe_test
from render_serving import (
    export_precision,
    serving_overload,
    serving_peers,
    serving_variants,
)
from render_study import load_honesty, study
from results_file import RESULTS, ROOT, load, where
from simulate_scaling import machines, scaling, scaling_check, scaling_ranks

SHAPES_ON_A_CPU = {"criteo-kaggle-1m": "b", "mlperf-100k": "c", "rmc2-small": "d"}
TRAINED_ON_A_CPU = (
    ("criteo-kaggle-1m", 128, ""),
    ("criteo-kaggle-1m", 2048, ""),
    ("mlperf-100k", 2048, ""),
    ("rmc2-small", 128, ""),
    ("rmc2-small", 256, ""),
    ("rmc2-small", 128, "-rowwise_adagrad"),
    ("rmc2-small", 256, "-rowwise_adagrad"),
)
PREDICTED_ON_A_CPU = (
    ("criteo-kaggle-1m", 1),
    ("criteo-kaggle-1m", 128),
    ("criteo-kaggle-1m", 2048),
    ("mlperf-100k", 2048),
    ("rmc2-small", 128),
)
CPU_HEAD = (
    "| shape | precision | ms | plain PyTorch, ms | ratio | share of the floor | quiet rounds |",
    "|---|---|---|---|---|---|---|",
)
YARDSTICKS = {
    "criteo-sample": "logistic regression 0.7072 / 0.1400, LightGBM 0.6963 / 0.1411",
    "adult": "logistic regression 0.9198 / 0.2910, LightGBM 0.9276 / 0.2771",
}


def accuracy() -> str:
    """Test metrics on public data."""
    lines = [
        "| data | test AUC | log loss | calibration | AUC / log loss of others |",
        "|---|---|---|---|---|",
    ]
    for preset, others in YARDSTICKS.items():
        samples = load(f"accuracy-{preset}")["samples"]

        def shown(name: str, samples: list[dict[str, float]] = samples) -> str:
            values = [s[name] for s in samples]
            return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"

        cells = [preset, shown("auc"), shown("log_loss"), shown("calibration"), others]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines.append(f"Means and standard deviations over five seeds. {where('accuracy-adult')}")
    return "\n".join(lines)


BASELINES = {
    "adult": "UCI Adult",
    "criteo-sample": "Criteo's sample",
    "criteo-generated": "the generated log",
}
"""Presets of bench_baselines.py."""


def baseline_settings() -> str:
    """What makes a baseline of the preset criteo-generated."""
    lines = ["| model | keys of `[model]` |", "|---|---|"]
    for model, keys in load("baselines-criteo-generated")["config"]["settings"].items():
        text = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in keys.items())
        lines.append(f"| `{model}` | {text or 'the preset as it stands'} |")
    return "\n".join([*lines, "", "As for the preset `criteo-generated`, whose D is 16."])


def baselines() -> str:
    """Test metrics of the models on three data sets."""
    lines = []
    measured = [preset for preset in BASELINES if (RESULTS / f"baselines-{preset}.json").is_file()]
    for preset, data in BASELINES.items():
        if preset not in measured:
            lines += [f"{data}: not measured yet: `python benchmarks/bench_baselines.py`.", ""]
            continue
        content = load(f"baselines-{preset}")
        seeds = len({sample["seed"] for sample in content["samples"]})
        lines += [
            f"| {data}, {seeds} seeds | test AUC | less DLRM's | NE | parameters "
            "| of them outside the tables |",
            "|---|---|---|---|---|---|",
        ]
        for model, found in content["result"].items():
            cells = [f"`{model}`"]
            less = _less_than_dlrm(content["samples"], model)
            for part, sign in ((found["auc"], ""), (less, "+"), (found["ne"], "")):
                cells.append(f"{part['mean']:{sign}.4f} ± {part['half']:.4f}" if part else "")
            cells += [f"{found[k]:,}" for k in ("num_parameters", "num_dense_parameters")]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    best = load("baselines-criteo-generated")["config"]
    lines.append(
        "Means and their 95 % intervals over the seeds, differences by pairs of one seed; nothing "
        "was tuned for any of them. "
        f"The generated log has {best['rows']:,} rows, and no model can reach more than an AUC of "
        f"{best['best_auc']:.4f} on it. "
        + " ".join(dict.fromkeys(where(f"baselines-{preset}") for preset in measured))
    )
    return "\n".join(lines)


def _less_than_dlrm(samples: list[dict[str, Any]], model: str) -> dict[str, float] | None:
    """Mean difference of AUC to DLRM, pairs of one seed; None for DLRM."""
    aucs = [{s["seed"]: s["auc"] for s in samples if s["model"] == m} for m in (model, "dlrm")]
    return None if model == "dlrm" else interval([auc - aucs[1][k] for k, auc in aucs[0].items()])


def pipeline() -> str:
    """Rates of the stages, and their memory where it was measured."""
    stages = ("generate", "prepare")
    lines = ["| stage | rows/s | peak memory |", "|---|---|---|"]
    for name in stages:
        median = load(name)["median"]
        peak = median.get("peak_rss_bytes")
        memory = f"{peak / 2**30:.2f} GiB" if peak else "not measured"
        lines.append(f"| {name} | {median['rows_per_s']:,.0f} | {memory} |")
    lines.append("")
    lines.append(
        "Medians of whole runs on 2 M rows of gzipped TSV in 4 files; `prepare --memory 1GiB`. "
        + " ".join(dict.fromkeys(map(where, stages)))
    )
    return "\n".join(lines)


def prepare_scale() -> str:
    """Growing logs, and what kills changed."""
    if not (RESULTS / "prepare-scale.json").is_file():
        return "Not measured yet: `python benchmarks/bench_prepare_scale.py`, and with `--kill 5`."
    content = load("prepare-scale")
    lines = ["| rows | s | rows/s | peak memory | peak disk |", "|---|---|---|---|---|"]
    for sample in content["samples"]:
        memory, disk = (sample[f"peak_{what}_bytes"] / 2**30 for what in ("rss", "disk"))
        lines.append(
            f"| {sample['num_rows']:,} | {sample['seconds']:.1f} | {sample['rows_per_s']:,.0f} "
            f"| {memory:.2f} GiB | {disk:.2f} GiB |"
        )
    settings = content["config"]
    lines += [
        "",
        f"`--memory {settings['memory']} --workers {settings['workers']}`, 8 files, gzip.",
    ]
    lines[-1] += " Memory is that of all processes. " + where("prepare-scale")
    if (RESULTS / "prepare-kills.json").is_file():
        kills = load("prepare-kills")["result"]
        same = "the same bytes" if kills["is_same"] else "OTHER BYTES"
        lines[-1] += (
            f" Killed {kills['num_kills']} times and started again: {same} in "
            f"{kills['num_files']} files. {where('prepare-kills')}"
        )
    return "\n".join(lines)


def train_cuda() -> str:
    """A training step on a GPU against plain PyTorch."""
    lines = [
        "| B | ms | M samples/s | plain PyTorch fp32 / tf32 / bf16, ms | ratio to the fastest "
        "| share of the floor |",
        "|---|---|---|---|---|---|",
    ]
    for batch in (8192, 32768):
        result = load(f"train-cuda-criteo-terabyte-10m-{batch}-bf16")["result"]
        systems = result["ms_by_system"]
        plain = [systems[f"plain{kind}_ms"] for kind in ("", "_tf32", "_bf16")]
        cells = [
            f"{batch:,}",
            f"{result['ms']:.3f}",
            f"{result['samples_per_s'] / 1e6:.1f}",
            " / ".join(f"{ms:.2f}" for ms in plain),
            f"{result['ratio_to_plain']:.1f}",
            f"{result['share_of_floor']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines.append(where("train-cuda-criteo-terabyte-10m-8192-bf16"))
    return "\n".join(lines)


def train_dcnv2() -> str:
    """A training step of MLPerf's DLRM-DCNv2 on a GPU."""
    name = "train-cuda-mlperf-dcnv2-10m-6912-bf16"
    result = load(name)["result"]
    lines = ["| | ms | M samples/s | ours is faster by |", "|---|---|---|---|"]
    words = {
        "ours": "fastdlrm, row-wise Adagrad",
        "plain": "plain PyTorch fp32, SGD",
        "plain_tf32": "plain PyTorch tf32, SGD",
        "plain_bf16": "plain PyTorch bf16, SGD",
        "plain_rowwise_adagrad": "plain PyTorch fp32, row-wise Adagrad",
    }
    for system, ratio in result["ratios"].items():
        ms = result["ms_by_system"][f"{system}_ms"]
        lines.append(
            f"| {words[system]} | {ms:.2f} | {result['batch'] / ms / 1e3:.2f} | {ratio:.1f}x |"
        )
    floor = result["floor_ms"]
    lines.append(
        f"| the floor | {floor:.2f} | {result['batch'] / floor / 1e3:.2f} "
        f"| {result['share_of_floor']:.0%} reached |"
    )
    return "\n".join([*lines, "", where(name)])


SEVERAL = (
    ("criteo-terabyte-10m", 8192),
    ("criteo-terabyte-10m", 32768),
    ("mlperf-100k", 8192),
    ("criteo-kaggle-1m", 8192),
)
"""Shapes and samples a rank of the runs on several GPUs."""


def parallel() -> str:
    """Steps on one and two GPUs, and how well they were predicted."""
    lines = [
        "| shape | B a card | one card, ms | two cards, ms | M samples/s | of twice one card "
        "| predicted, ms | NCCL beside nothing, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape, batch in SEVERAL:
        one, two = (
            load(f"parallel-cuda-{shape}-{ranks}x{batch}-bf16")["result"]["plans"]["planned"]
            for ranks in (1, 2)
        )
        alone = load(f"parallel-cuda-{shape}-2x{batch}-bf16")["result"]["plans"]["round_robin"]
        cells = [
            shape,
            f"{batch:,}",
            f"{one['ms']:.3f}",
            f"{two['ms']:.3f}",
            f"{two['samples_per_s'] / 1e6:.1f}",
            f"{one['ms'] / two['ms']:.0%}",
            f"{one['predicted_known_ms']:.3f} / {two['predicted_known_ms']:.3f}",
            f"{alone['exposed_ms']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", where("parallel-cuda-criteo-terabyte-10m-2x8192-bf16")]
    return "\n".join(lines)


def parallel_cpu() -> str:
    """Steps on one and two ranks of a CPU, and how well they were predicted."""
    lines = ["| shape | ranks | B a rank | ms | predicted | off |", "|---|---|---|---|---|---|"]
    name = ""
    for shape, batch in (("criteo-kaggle-1m", 1024), ("mlperf-100k", 512), ("rmc2-small", 128)):
        for ranks in (1, 2):
            name = f"parallel-cpu-{shape}-{ranks}x{batch}-fp32"
            found = load(name)["result"]["plans"]["planned"]
            cells = [
                shape,
                f"{ranks}",
                f"{batch:,}",
                f"{found['ms']:.1f}",
                f"{found['predicted_measured_ms']:.1f}",
                f"{found['off_measured']:+.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", where(name)])


def plans() -> str:
    """Plans of the same tables on two GPUs, beside what was predicted."""
    names = ("planned", "round_robin", "row_wise", "column_wise", "data_parallel")
    lines = [f"| shape | B a card | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for shape, batch in SEVERAL:
        found = load(f"parallel-cuda-{shape}-2x{batch}-bf16")["result"]["plans"]
        cells = [shape, f"{batch:,}"]
        for name in names:
            one = found.get(name, {})
            cells.append(
                f"{one['ms']:.2f} ({one['predicted_known_ms']:.2f})" if "ms" in one else "-"
            )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Milliseconds a step, in brackets what the cost model predicted."]
    return "\n".join(lines)


def fed() -> str:
    """Training fed from disk."""
    median = load("fed-cuda")["median"]
    lines = ["| B | on the device, M rows/s | from disk, M rows/s | share |", "|---|---|---|---|"]
    for batch in (8192, 32768):
        resident, read = (median[f"{k}_rows_per_s.{batch}"] / 1e6 for k in ("in_memory", "fed"))
        lines.append(
            f"| {batch:,} | {resident:.1f} | {read:.1f} | {median[f'share.{batch}']:.1%} |"
        )
    lines.append("")
    lines.append("Whole epochs of 12 M rows, page cache warm. " + where("fed-cuda"))
    return "\n".join(lines)


WAYS = {
    "plain": "a row for every id",
    "hash-1": "`hash`, 1 function",
    "hash-2": "`hash`, 2 functions",
    "quotient_remainder-add": "`quotient_remainder`, `add`",
    "quotient_remainder-mult": "`quotient_remainder`, `mult`",
    "quotient_remainder-concat": "`quotient_remainder`, `concat`",
    "padded": "`mixed_dims`",
    "projected": "`mixed_dims`, `table_projection`",
    "projected_powers": "the same, `round_to_power_of_two`",
}
"""By the name that `bench_compression` and `bench_mixed_dims` give it, the share left out."""


def compression() -> str:
    """Memory and test AUC of each way to compress tables, the same seeds for all."""
    return held_otherwise("compression", "one row in", "compressed")


def mixed_dims() -> str:
    """The same of narrow tables."""
    return held_otherwise("mixed-dims", "one byte in", "narrower")


def held_otherwise(result: str, share_of: str, are: str) -> str:
    """Ways to hold tables beside a row of full width for every id.

    Args:
        result: Of `bench_compression.compare`.
        share_of: Head of the column of shares.
        are: What larger tables are.
    """
    content = load(result)
    samples, seeds, rows = content["samples"], content["config"]["seeds"], content["config"]["rows"]
    by_way: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        by_way.setdefault(sample["way"], []).append(sample)
    plain = by_way["plain"]
    lines = [
        f"| tables | {share_of} | rows | MiB | of plain | test AUC | beside plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, some in by_way.items():
        name, _, share = (way, "", "") if way == "plain" else way.rpartition("-")
        auc = [sample["auc"] for sample in some]
        lost = [one - base["auc"] for one, base in zip(auc, plain, strict=True)]
        size = some[0]["table_bytes"]
        cells = [WAYS[name], share, f"{some[0]['table_rows']:,}", f"{size / 2**20:.2f}"]
        cells += [f"{size / plain[0]['table_bytes']:.1%}", f"{statistics.mean(auc):.4f}"]
        cells += ["" if way == "plain" else f"{statistics.mean(lost):+.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    spread = max(s["auc"] for s in plain) - min(s["auc"] for s in plain)
    lines += [
        "",
        f"Means over {len(seeds)} seeds, whose AUC in the first row differ by {spread:.4f}; "
        f"{rows:,} generated rows, rare ids kept; tables above "
        f"{content['config']['threshold_rows']} rows are {are}. The best AUC that any model "
        f"can reach is {content['result']['best_auc']:.4f}. {where(result)}",
    ]
    return "\n".join(lines)


def precision() -> str:
    """AUC by precision."""
    lines = ["| data | bf16 - fp32 | bf16 with bf16 tables - fp32 |", "|---|---|---|"]
    names = sorted(path.stem for path in RESULTS.glob("precision-*.json"))
    for name in names:
        result = load(name)["result"]
        cells = [f"{r['mean']:+.5f} ± {r['half']:.5f}" for r in result.values()]
        lines.append(f"| {name.removeprefix('precision-')} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        "Mean difference of test AUC and its 95 % interval over five seeds. "
        + " ".join(dict.fromkeys(map(where, names)))
    )
    return "\n".join(lines)


def cpu_train() -> str:
    """One training step on a CPU, against plain PyTorch in the same run."""
    lines = [*CPU_HEAD]
    for shape, batch, rule in TRAINED_ON_A_CPU:
        for precision in ("fp32", "bf16"):
            name = f"train-cpu-{shape}-{batch}-{precision}{rule}"
            if not (RESULTS / f"{name}.json").is_file():
                continue
            result = load(name)["result"]
            plain = result["ms_by_system"][f"plain{rule.replace('-', '_')}_ms"]
            label = f"{SHAPES_ON_A_CPU[shape]}, B={batch}" + (", row-wise Adagrad" if rule else "")
            lines.append(_cpu_line(label, precision, result, plain))
    lines += ["", where(f"train-cpu-{shape}-{batch}-fp32{rule}")]
    return "\n".join(lines)


def cpu_inference() -> str:
    """One forward pass on a CPU, against plain PyTorch in the same run."""
    lines = [*CPU_HEAD]
    for shape, batch in PREDICTED_ON_A_CPU:
        for precision in ("fp32", "bf16"):
            name = f"inference-cpu-{shape}-{batch}-{precision}"
            result = load(name)["result"]
            label = f"{SHAPES_ON_A_CPU[shape]}, B={batch}"
            plain = result["ms_by_system"]["plain_ms"]
            lines.append(_cpu_line(label, precision, result, plain))
    lines += ["", where(name)]
    return "\n".join(lines)


def _cpu_line(label: str, precision: str, result: dict[str, Any], plain: float) -> str:
    ms = result["ms"]
    cells = [label, precision, f"{ms:.2f}", f"{plain:.2f}", f"{plain / ms:.2f}"]
    cells += [f"{result['share_of_floor']:.0%}", f"{result['quiet_rounds']}/{result['rounds']}"]
    return f"| {' | '.join(cells)} |"


TABLES = {
    ROOT / "README.md": (accuracy, pipeline, train_cuda, train_dcnv2, parallel, serving_peers),
    ROOT / "docs" / "guides" / "large-data.md": (prepare_scale,),
    ROOT / "docs" / "guides" / "accuracy.md": (
        recipe_test,
        recipe_adult,
        recipe_criteo_sample,
        recipe_criteo_generated,
    ),
    ROOT / "docs" / "guides" / "export.md": (export_precision,),
    ROOT / "docs" / "guides" / "bench.md": (study,),
    ROOT / "docs" / "guides" / "load.md": (load_honesty,),
    ROOT / "docs" / "guides" / "compression.md": (compression,),
    ROOT / "docs" / "guides" / "model.md": (baseline_settings, baselines, mixed_dims),
    ROOT / "docs" / "performance.md": (
        train_cuda,
        train_dcnv2,
        parallel,
        plans,
        fed,
        precision,
        cpu_train,
        cpu_inference,
        serving_variants,
        serving_peers,
        serving_overload,
    ),
    ROOT / "docs" / "scaling.md": (scaling_check, parallel_cpu, scaling, scaling_ranks, machines),
}


def main() -> None:
    is_current = True
    for path, renders in TABLES.items():
        text = path.read_text()
        for render in renders:
            name = render.__name__.replace("_", "-")
            block = f"<!-- table {name} -->\n{render()}\n<!-- end {name} -->"
            pattern = rf"<!-- table {name} -->.*<!-- end {name} -->"
            text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
            if count != 1:
                sys.exit(f"{path}: {count} places for table {name}, wanted 1")
        is_current = is_current and text == path.read_text()
        if "--check" not in sys.argv:
            path.write_text(text)
    if "--check" in sys.argv:
        sys.exit(not is_current)


if __name__ == "__main__":
    main()
