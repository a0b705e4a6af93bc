"""Draw benchmarks/results/growth-*.json to docs/images/growth.svg.

Usage: python benchmarks/plot_growth.py
"""

import json

import matplotlib as mpl
from matplotlib import pyplot as plt
from results_file import RESULTS, ROOT

OUT = ROOT / "docs" / "images" / "growth.svg"


def main() -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fastdlrm"  # the same bytes at every run
    paths = sorted(RESULTS.glob("growth-*.json"))
    figure, axes = plt.subplots(len(paths), 2, figsize=(9, 3.4 * len(paths)), squeeze=False)
    for (by_batch, by_rows), path in zip(axes, paths, strict=True):
        content = json.loads(path.read_text())
        samples, host = content["samples"], content["host"]
        where = host.get("gpu") or f"{host['cpu']}, {host['cores']} cores"
        most = max(samples, key=lambda s: len([t for t in samples if t["cap"] == s["cap"]]))["cap"]
        line = sorted((s["batch"], s["ms"]) for s in samples if s["cap"] == most)
        by_batch.plot(*zip(*line, strict=True), marker="o")
        by_batch.set(xlabel="samples a batch", ylabel="ms a step", xlim=(0, None), ylim=(0, None))
        by_batch.set_title(f"{where}: rows capped at {most:,}", fontsize=9)
        for batch in sorted({s["batch"] for s in samples if s["cap"] != most}):
            line = sorted((s["rows"], s["ms"]) for s in samples if s["batch"] == batch)
            by_rows.plot(*zip(*line, strict=True), marker="o", label=f"B = {batch}")
        by_rows.set(xscale="log", xlabel="rows of all tables", ylabel="ms a step", ylim=(0, None))
        by_rows.legend()
    figure.tight_layout()
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, metadata={"Date": None})
    print(OUT)


if __name__ == "__main__":
    main()
