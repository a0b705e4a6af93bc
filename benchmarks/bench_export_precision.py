"""What an exported model's precision costs on test: AUC, NE and the tables' size, several seeds.

Each seed is trained once and exported in every precision; the figures are those of the manifests.

Usage: python benchmarks/bench_export_precision.py criteo-sample 'DIR/day_*.gz'
       python benchmarks/bench_export_precision.py criteo-generated --generate 1000000
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bench_accuracy import SEEDS, fastdlrm
from results_file import write

PRECISIONS = (("bf16", "bf16"), ("int8", "fp32"), ("int4", "fp32"), ("int8", "int8"))
"""Tables, MLPs."""
NO_LIMIT = ("--max-auc-drop", "1", "--max-ne-rise", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--generate", type=int, default=0, help="rows of a generated log as input")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = options.inputs
        if options.generate:
            rows = ("--rows", str(options.generate), "--files", "4", "--seed", "7")
            fastdlrm("generate", *rows, "--out", str(folder / "log"))
            inputs = [f"{folder}/log/day_*"]
        data = str(folder / "data")
        flags = [flag for path in inputs for flag in ("--input", path)]
        fastdlrm("prepare", "--config", options.preset, *flags, "--out", data)
        samples = []
        for seed in SEEDS[: options.seeds]:
            run = str(folder / f"run-{seed}")
            command = ("--config", options.preset, "--data", data, "--out", run)
            fastdlrm("train", *command, "--set", f"seed={seed}")
            for tables, mlp in PRECISIONS:
                out = folder / f"model-{seed}-{tables}-{mlp}"
                fastdlrm(
                    *("export", "--run", run, "--data", data, "--out", str(out)),
                    *("--tables", tables, "--mlp", mlp, *NO_LIMIT),
                )
                samples.append({"seed": seed, **compared(out)})
                print(samples[-1])
    result = {f"{t}/{m}": summary(samples, t, m) for t, m in PRECISIONS}
    print(json.dumps(result, indent=2))
    config = {"preset": options.preset, "rows": options.generate}
    print(write(f"export-precision-{options.preset}", config, samples, result))


def compared(model: Path) -> dict[str, Any]:
    """An exported model against its float32 self."""
    plain, ours = json.loads((model / "manifest.json").read_text())["quality"]
    return {
        "tables": ours["tables"],
        "mlp": ours["mlp"],
        "auc_fp32": plain["auc"],
        "auc_change": ours["auc"] - plain["auc"],
        "ne_change": ours["ne"] / plain["ne"] - 1,
        "calibration": ours["calibration"],
        "max_logit_difference": ours["max_logit_difference"],
        "times_smaller": plain["tables_bytes"] / ours["tables_bytes"],
        "num_rows": ours["num_rows"],
    }


def summary(samples: list[dict[str, Any]], tables: str, mlp: str) -> dict[str, float]:
    """Of all seeds: the largest cost, and the size."""
    mine = [s for s in samples if (s["tables"], s["mlp"]) == (tables, mlp)]
    return {
        "largest_auc_change": max((s["auc_change"] for s in mine), key=abs),
        "mean_auc_change": sum(s["auc_change"] for s in mine) / len(mine),
        "largest_ne_change": max((s["ne_change"] for s in mine), key=abs),
        "times_smaller": mine[0]["times_smaller"],
    }


if __name__ == "__main__":
    main()
